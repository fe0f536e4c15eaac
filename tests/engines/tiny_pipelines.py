"""Directories of diffusion pipelines of the common architectures, with few random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

NATIVE = 64
"""Native width and height in pixels; decoders double the sides of the latents."""
BERT_TOKENS = 12
CLIP_TOKENS = 77
T5_TOKENS = 256
"""Prompt limit of the SD3 pipeline for T5, which itself has no limit."""


def stable_diffusion(directory: Path, *, unsafe: bool = False) -> Path:
    """Stable Diffusion with BERT as text encoder; `unsafe`: a checker rejects every image."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "heart", "word"]
    vocabulary = directory.with_suffix(".txt")
    vocabulary.write_text("\n".join(words))
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=BERT_TOKENS)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=BERT_TOKENS,
    )
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=BertModel(config),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=16),
        scheduler=scheduler,
        safety_checker=_objector() if unsafe else None,
        feature_extractor=(
            CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=30) if unsafe else None
        ),
        requires_safety_checker=unsafe,
    )
    pipe.save_pretrained(directory)
    return directory


def stable_diffusion_xl(directory: Path, *, solver: bool = False) -> Path:
    """SDXL, with two CLIP text encoders and a text-and-time embedding."""
    torch.manual_seed(1)
    tokenizer = _clip_tokenizer()
    scheduler = DPMSolverMultistepScheduler() if solver else EulerDiscreteScheduler()
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=scheduler,
    )
    pipe.save_pretrained(directory)
    return directory


def stable_diffusion_3(directory: Path) -> Path:
    """SD3: a flow-matching transformer with two CLIP text encoders and T5."""
    torch.manual_seed(2)
    tokenizer = _clip_tokenizer()
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), ("\u2581word", -1.0)]
    large = T5Config(vocab_size=len(words), d_model=64, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=NATIVE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(large),
        tokenizer_3=T5Tokenizer(vocab=words),
    )
    pipe.save_pretrained(directory)
    return directory


def _unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=NATIVE // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    )


def _vae(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    )


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        projection_dim=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=512,
        eos_token_id=513,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer with one token for each character."""
    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(character + "</w>" for character in characters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_TOKENS)


def _objector() -> StableDiffusionSafetyChecker:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 8},
        vision_config={**tower, "image_size": 30, "patch_size": 6},
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(config)
    # Cosine thresholds below -1, which every image exceeds.
    checker.concept_embeds_weights.data.fill_(-2.0)
    checker.special_care_embeds_weights.data.fill_(-2.0)
    return checker
