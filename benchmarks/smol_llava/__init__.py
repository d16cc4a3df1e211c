"""What smol-llava is like: answers about scenes, text answers beside SmolLM2's, curves over layers.

    python -m benchmarks.smol_llava --data FOLDER                  # 1.5 hours on one CPU core
    python -m benchmarks.smol_llava --data FOLDER --seconds 280    # repeat until it says "done"
    python -m benchmarks.smol_llava --write                        # what was measured, as files

Finished pieces are kept in a file, so that an interrupted run goes on where it stopped. `--write`
makes `benchmarks/results/smol-llava.json` and the card of the model from them.

- `vqa`, `other`, `caption`, `fact`: as `attrib.zoo.evaluate` scores the other embedded models.
- `text`: 200 natural questions (the `loc` questions of E-VQA, in a seeded order) in SmolLM2's chat
  format; both models answer greedily, in at most 24 tokens. Is smol-llava's answer the same text,
  how often do both choose the same token after each start of SmolLM2's answer, and how far is
  smol-llava's distribution there (nats)? Results name rows of the file, not their text.
- `common`: the same for common facts (`common_facts.csv`). Of those that SmolLM2 knows (its answer
  contains the right one), does smol-llava know them too? It knows few of the natural questions.
- `everyday`: the same for questions of kinds that no training has (`attrib.zoo.text_questions`).
- `layers`: noise of one standard deviation on visual tokens, or on text tokens but the last (nats);
  the logit lens; patching from another image; attention of the last token to the first token, to
  the image and to the text; the norm of the first token's state, relative to the median token.
"""
