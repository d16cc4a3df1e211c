"""Models with random weights in the shape of LLaVA-1.5: costs do not depend on the weights."""

from dataclasses import dataclass, replace

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import attrib
from attrib.model.batch import Batch, Grid, Picture
from attrib.model.vlm import VLM

PATCH = 14
IMAGE, BOS, FIRST_WORD = 3, 1, 5


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA-like model and of one prompt; the defaults fit two CPU cores."""

    side: int = 24  # rows and columns of visual tokens
    text: int = 40

    @property
    def visual(self) -> int:
        """Number of visual tokens."""
        return self.side**2

    layers: int = 8
    width: int = 512
    heads: int = 8
    vocab: int = 4096


# LLaVA-1.5-7B: Vicuna-7B behind CLIP ViT-L/14 at 336 pixels.
LLAVA_7B = Shape(layers=32, width=4096, heads=32, vocab=32064)
TINY = Shape(side=4, layers=8, width=64, heads=4, vocab=512)
SHAPES = {"llava-7b": LLAVA_7B, "small": TINY}  # for `random_vlm_with_processor`
DTYPES = ("bfloat16", "float32")


def random_vlm(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> VLM:
    """A LLaVA of this shape with random weights, created on its device."""
    torch.manual_seed(seed)
    large = shape.width >= LLAVA_7B.width
    vision = CLIPVisionConfig(
        hidden_size=1024 if large else 64,
        intermediate_size=4096 if large else 128,
        num_hidden_layers=24 if large else 2,
        num_attention_heads=16 if large else 2,
        image_size=shape.side * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=11008 if large else shape.width * 11 // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        vocab_size=shape.vocab,
        max_position_embeddings=4096,
        bos_token_id=BOS,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=shape.visual,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return VLM(model.eval().requires_grad_(False), name=f"llava-like {shape}")


def random_vlm_with_processor(shape: Shape, dtype: torch.dtype, device: str) -> VLM:
    """A random model with the processor of tiny-llava at the shape's image size."""
    vlm = random_vlm(shape, dtype, device)
    processor = attrib.load("tiny-llava").processor
    side = shape.side * PATCH
    processor.patch_size = PATCH
    for name in ("size", "crop_size"):
        setattr(processor.image_processor, name, {"height": side, "width": side})
    vlm.model.config.image_token_id = processor.image_token_id
    vlm.model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return VLM(vlm.model, processor, name=vlm.name)


def random_batch(vlm: VLM, shape: Shape, seed: int = 0) -> Batch:
    """One prompt after one image, in the format of LLaVA-1.5."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(FIRST_WORD, shape.vocab, (shape.text,), generator=generator)
    ids = torch.cat([torch.tensor([BOS]), torch.full((shape.visual,), IMAGE), words])[None]
    side = shape.side * PATCH
    pixels = torch.randn(1, 3, side, side, generator=generator)
    inputs = {
        "input_ids": ids.to(vlm.device),
        "pixel_values": pixels.to(vlm.device, vlm.model.dtype),
    }
    grid = Grid(shape.side, shape.side, (0.0, 0.0, float(side), float(side)))
    picture = Picture(slice(0, shape.visual), grid)
    return replace(vlm.batch(inputs), pictures=((picture,),))
