// The panels of one side. Each has a node, and `show(state)` to draw what is chosen.

// Contributions of attention and MLP to the key token, per layer.
class ContributionPanel {
  constructor(side, act) {
    this.side = side;
    this.act = act;
    this.scale = new Choices("Scale of contributions", [["shares", "parts of the logit"], ["paper", "VisEdit Eq. 3"]],
      (value) => act({ scale: value }));
    this.slot = el("div");
    this.total = el("p", { class: "caption" });
    this.numbers = new NumberTable("Contributions");
    this.node = panel("Contribution of each layer", "contributions", this.scale.node, barLegend(["attention", "MLP"]), this.slot, this.total, this.numbers.node);
  }
  show({ query, layer, scale }) {
    const { side } = this;
    this.scale.set(scale);
    const pairs = [...Array(side.layers).keys()].map((i) => side[scale].row(query, i));
    const known = pairs.flat().some(Number.isFinite);
    const label = `Contributions of attention and MLP to ${side.text(side.keys[query])} by layer`;
    this.slot.replaceChildren(known ? barChart(pairs, label, layer, (i) => this.act({ layer: i })) : el("p", {}, side.note));
    const [embed, between, constant] = side.constants.row(query);
    const sum = pairs.reduce((total, _, i) => total + side.shares.row(query, i)[0] + side.shares.row(query, i)[1], 0);
    this.total.textContent = scale === "shares" && known
      ? `The bars add up to ${shown(sum)}; ${this.others(embed, between, constant)}the logit of “${side.text(side.keys[query])}” is ${shown(sum + embed + between + constant)}.`
      : "Signed square roots, from −1 to 1, before the final norm: they do not add up.";
    const rows = () => pairs.map((_, i) => [i, ...side.shares.row(query, i), ...side.paper.row(query, i)]);
    this.numbers.set(["layer", "attention, part of logit", "MLP, part of logit", "attention, Eq. 3", "MLP, Eq. 3"], rows, layer);
  }
}

ContributionPanel.prototype.others = (embed, between, constant) => {
  const terms = [["the embedding", embed], ["writes between layers", between], ["biases", constant]];
  const told = terms.filter(([, value]) => value !== 0).map(([name, value]) => `${name} (${signed(value)})`);
  return told.length ? `with ${told.join(", ")} ` : "";
};

// Logit lens: the likeliest tokens of each layer's state.
class LensPanel {
  constructor(side, act) {
    this.side = side;
    this.top = side.lens.shape[2];
    this.key = el("p", { class: "caption" });
    const head = tableHead(["layer", ...[...Array(this.top).keys()].map((i) => (i ? String(i + 1) : "likeliest"))]);
    this.rows = [...Array(side.layers).keys()].map((layer) => {
      const button = el("button", { type: "button", class: "plain", "data-layer": layer }, String(layer));
      button.addEventListener("click", () => act({ layer }));
      const cells = [...Array(this.top).keys()].map(() => el("td"));
      return { node: el("tr", {}, el("th", { scope: "row" }, button), ...cells), button, cells };
    });
    rove(this.node = panel("Logit lens: what each layer's state says", "lens"), () => this.rows.map((one) => one.button), true);
    const table = el("table", { class: "lens-table" }, head, el("tbody", {}, ...this.rows.map((one) => one.node)));
    const copy = copyButton("Copy as CSV", () => this.csv());
    this.node.append(this.key, el("div", { class: "scroll" }, table), copy);
  }
  show({ query, layer }) {
    const { side } = this;
    this.query = query;
    const key = side.keys[query];
    this.key.replaceChildren("Outlined: ", word(side.text(key)), `, ${percent(side.keyP.at(query, side.layers - 1))} after the last layer. Probabilities in per cent.`);
    this.rows.forEach(({ node, button, cells }, i) => {
      node.classList.toggle("current", i === layer);
      button.tabIndex = i === layer ? 0 : -1;
      button.setAttribute("aria-pressed", String(i === layer));
      cells.forEach((cell, k) => {
        const token = side.lens.at(query, i, k);
        const p = side.lensP.at(query, i, k);
        cell.className = token === key ? "key" : "";
        cell.style.setProperty("--p", `${100 * p}%`);
        cell.title = `${side.text(token)} ${percent(p)}`;
        cell.replaceChildren(word(side.text(token)), el("span", { class: "p" }, ` ${perCent(p)}`));
      });
    });
  }
  csv() {
    const { side, query } = this;
    const rows = this.rows.flatMap((_, layer) => [...Array(this.top).keys()].map((k) =>
      [layer, k + 1, side.text(side.lens.at(query, layer, k)), side.lensP.at(query, layer, k)]));
    return csvOf(["layer", "rank", "token", "probability"], rows);
  }
}

// Attention over the words at one layer, and over groups of positions by layer.
class WordPanel {
  constructor(side, act) {
    this.side = side;
    this.act = act;
    this.groups = ["picture", "words", "first token", "answer so far"];
    this.words = el("p", { class: "text", dir: "auto" });
    this.legend = el("p", { class: "caption" });
    this.slot = el("div");
    this.numbers = new NumberTable("Attention over the words");
    this.node = panel("Attention over the words", "words", this.legend, this.words,
      el("h4", {}, "Attention by kind of token"), this.slot, this.numbers.node);
  }
  show({ query, layer }) {
    const { side } = this;
    const values = side.attentionWords.row(query, layer);
    const largest = Math.max(...values.filter(Number.isFinite), 0);
    this.legend.textContent = Number.isFinite(values[0])
      ? `Layer ${layer}: the brightest word has ${percent(largest)}; the picture has ${percent(side.sums.at(query, layer, 0))}.`
      : `Layer ${layer} has no attention.`;
    const range = rangeOf(values);
    this.words.replaceChildren(...values.flatMap((value, i) => {
      const node = tinted(word(side.word(i)), shareOf(value, range));
      node.title = `${percent(value)} of the attention`;
      return [node, " "];
    }));
    const all = this.groups.map((name, group) => ({ name, values: [...Array(side.layers).keys()].map((i) => side.sums.at(query, i, group)) }));
    const lines = all.filter((one) => one.values.some((value) => value > 0));
    this.slot.replaceChildren(legend(lines.map((one) => one.name)), lineChart(lines, "Attention to the picture, the words, the first token and the answer, by layer", layer, (i) => this.act({ layer: i }), percent));
    const each = [...Array(side.layers).keys()];
    this.numbers.set(["word", ...each.map((i) => `layer ${i}`)], () => {
      const rows = each.map((n) => side.attentionWords.row(query, n));
      return values.map((_, i) => [side.word(i), ...rows.map((one) => one[i])]);
    });
  }
}

// One visual token: which layers read it, what its state says, which words it resembles.
class TokenPanel {
  constructor(side, act) {
    this.side = side;
    this.act = act;
    this.title = el("p", { class: "caption readout", "aria-live": "polite" });
    this.head = el("p", { class: "caption" });
    this.slot = el("div", { class: "charts" });
    this.table = el("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "The visual token by layer" });
    this.copy = copyButton("Copy as CSV", () => csvOf(this.columns, this.data));
    this.node = panel("One visual token", "token", this.head, this.slot, this.copy);
  }
  show({ query, layer, cell }, where) {
    const { side } = this;
    const chosen = cell >= 0;
    this.node.hidden = !chosen;
    if (!chosen) {
      this.title.textContent = "Point at a cell, or focus the picture and press the arrow keys.";
      return;
    }
    const answer = query - side.firstAnswer;
    const heated = answer >= 0 && answer < side.heat.count;
    const layers = [...Array(side.layers).keys()];
    const attention = layers.map((i) => side.attentionVisual.row(query, i)[cell]);
    const heat = heated ? layers.map((i) => side.heat.row(answer, i)[cell]) : [];
    const weights = attention.map((v) => (Number.isFinite(v) ? v : -1));
    const most = weights.indexOf(Math.max(...weights));
    const known = (i) => Number.isFinite(side.visualP.largest.at(i));
    const said = known(layer) ? [", where its state says ", word(side.text(side.visualLens.at(layer, cell))), ` (${percent(side.visualP.row(layer)[cell])})`] : [];
    this.title.replaceChildren(`Visual token ${cell + 1}, ${where}: ${percent(attention[layer])} of the attention in layer ${layer}`, ...said, ".");
    this.head.textContent = `Visual token ${cell + 1}, ${where}. Layer ${most} attends to it most (${percent(attention[most])}). Point at another cell, or move with the arrow keys.`;
    const draw = (values, label, format) => lineChart([{ values }], label, layer, (i) => this.act({ layer: i }), format);
    this.slot.replaceChildren(el("div", {}, el("h4", {}, "Attention to it"), draw(attention, "Attention to the visual token by layer", percent)),
      ...(heated ? [el("div", {}, el("h4", {}, "Change when it is perturbed"), draw(heat, "Change of the attention output when the token is perturbed, by layer"))] : []));
    const near = (i) => side.near.row(i, cell).map((w, k) => `${side.word(w)} (${side.cosine.row(i, cell)[k].toFixed(2)})`);
    this.columns = ["layer", "attention", ...(heated ? ["perturbation"] : []), "its state says", "p", "nearest words (cosine)"];
    this.data = layers.map((i) => [i, attention[i], ...(heated ? [heat[i]] : []), known(i) ? side.text(side.visualLens.at(i, cell)) : "", known(i) ? side.visualP.row(i)[cell] : "", near(i).join(", ")]);
    const says = (i) => !known(i) ? el("span", { class: "p" }, "with --deep") : el("span", {}, word(side.text(side.visualLens.at(i, cell))), el("span", { class: "p" }, ` ${percent(side.visualP.row(i)[cell])}`));
    const words = (i) => el("span", {}, ...near(i).flatMap((text, k) => [k ? ", " : "", word(text)]));
    const rows = layers.map((i) => row(String(i), [says(i), words(i)], i === layer));
    this.slot.append(this.table);
    this.table.replaceChildren(el("table", {}, tableHead(["layer", "its state says", "nearest words (cosine)"]), el("tbody", {}, ...rows)));
  }
}

// Noise sensitivity and patching, where asked for.
class DeepPanel {
  constructor(side, act) {
    this.side = side;
    this.act = act;
    this.slot = el("div", { class: "charts" });
    this.numbers = new NumberTable("Curves");
    this.node = panel("Noise sensitivity and patching", "deep", this.slot, this.numbers.node);
    const { deep } = side;
    this.noise = Object.entries(deep.noise).map(([kind, stored]) => [kind, new Numbers(stored)]);
    this.patching = deep.patching ? new Numbers(deep.patching.curves) : null;
  }
  show({ layer }) {
    const { deep, layers } = this.side;
    const each = [...Array(layers).keys()];
    const choose = (i) => this.act({ layer: i });
    const charts = this.noise.map(([kind, values]) => {
      const lines = deep.sigmas.map((_, s) => ({ values: each.map((i) => values.at(i, s)) }));
      return el("div", {}, el("h4", {}, `Noise on the ${kind} tokens (KL, nats)`), legend(deep.sigmas.map((s) => `${s} std`)),
        lineChart(lines, `KL of the first answer token under noise on ${kind} tokens`, layer, choose));
    });
    const columns = ["layer", ...this.noise.flatMap(([kind]) => deep.sigmas.map((s) => `noise ${kind} ${s}`))];
    const data = each.map((i) => [i, ...this.noise.flatMap(([, values]) => deep.sigmas.map((_, s) => values.at(i, s)))]);
    if (this.patching) {
      const { spans, answers } = deep.patching;
      const lines = spans.map((_, s) => ({ values: each.map((i) => this.patching.at(s, 1, i)) }));
      const same = answers[0] === answers[1];
      charts.push(el("div", {}, el("h4", {}, "Patching: states of the other picture"),
        el("p", { class: "caption" }, "0: the answer stays ", word(answers[0]), `; 1: it is that of the other picture (${deep.picture}), `, word(answers[1]), "."),
        same ? el("p", {}, "Both pictures have the same answer: give another one.") : el("div", {}, legend(["visual tokens", "last prompt token"]), lineChart(lines, "Normalised logit difference by patched layer", layer, choose))));
      columns.push(...spans.map((s) => `patching ${s}`));
      data.forEach((one, i) => one.push(...spans.map((_, s) => this.patching.at(s, 1, i))));
    }
    this.slot.replaceChildren(...charts);
    this.numbers.set(columns, () => data, layer);
  }
}
