"""Tiny pipelines with random weights, one a family: `PIPELINES[name]()` gives (pipeline, keyword arguments of a call).

Text encoders are left out: prompts are given as embeddings, drawn at random. Each takes well under a second to build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

Tiny = tuple[Any, dict[str, Any]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eval_(module: torch.nn.Module) -> torch.nn.Module:
    return module.eval().requires_grad_(False)


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def ddim(**config: Any) -> Any:
    fixed = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return diffusers.DDIMScheduler(**{**fixed, "set_alpha_to_one": False, "steps_offset": 1, **config})


def nothing(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def flux(guidance_embeds: bool = True, **call: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    empty = nothing("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.FluxPipeline(transformer=eval_(transformer), scheduler=flow(shift=1.5), **empty)
    embeds = {"prompt_embeds": noise(1, 7, 32), "pooled_prompt_embeds": noise(1, 32)}
    return pipe, {"height": 32, "width": 32, **embeds, **call}


def flux_true_cfg() -> Tiny:
    negative = {
        "negative_prompt_embeds": noise(1, 7, 32, seed=1),
        "negative_pooled_prompt_embeds": noise(1, 32, seed=1),
    }
    return flux(guidance_embeds=False, true_cfg_scale=2.5, **negative)


def flux_off() -> Tiny:
    return flux(guidance_embeds=False)


def flux2() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.Flux2Pipeline(transformer=eval_(transformer), scheduler=flow(use_dynamic_shifting=True), **empty)
    return pipe, {"height": 64, "width": 64, "prompt_embeds": noise(1, 7, 32)}


def sd3(**call: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    empty = nothing(
        "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"
    )
    pipe = diffusers.StableDiffusion3Pipeline(transformer=eval_(transformer), scheduler=flow(shift=3.0), **empty)
    embeds = {
        "prompt_embeds": noise(1, 7, 32),
        "pooled_prompt_embeds": noise(1, 64),
        "negative_prompt_embeds": noise(1, 7, 32, seed=1),
        "negative_pooled_prompt_embeds": noise(1, 64, seed=1),
    }
    return pipe, {"height": 64, "width": 64, "guidance_scale": 4.0, **embeds, **call}


def wan_transformer(seed: int, **config: Any) -> Any:
    torch.manual_seed(seed)
    return eval_(
        diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            **config,
        )
    )


def wan(**parts: Any) -> Tiny:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    parts = {"transformer": wan_transformer(0), "scheduler": scheduler, **parts}
    pipe = diffusers.WanPipeline(**parts, **nothing("vae", "text_encoder", "tokenizer"))
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    return pipe, {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 4.0, **embeds}


def wan_two() -> Tiny:
    pipe, call = wan(transformer_2=wan_transformer(1), boundary_ratio=0.875)
    return pipe, {**call, "guidance_scale_2": 3.0, "num_inference_steps": 5}


def wan_expanded() -> Tiny:
    return wan(expand_timesteps=True, scheduler=flow(shift=5.0))


def ltx(**call: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.LTXPipeline(transformer=eval_(transformer), scheduler=scheduler, **empty)
    mask = torch.ones(1, 7, dtype=torch.bool)
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, {"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 3.0, **embeds, **masks, **call}


def ltx_rescaled() -> Tiny:
    return ltx(guidance_rescale=0.7)


def pixart(**parts: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    parts = {"transformer": eval_(transformer), "scheduler": scheduler, **parts}
    pipe = diffusers.PixArtSigmaPipeline(**parts, **nothing("vae", "text_encoder", "tokenizer"))
    mask = torch.ones(1, 7, dtype=torch.long)
    call = {"height": 64, "width": 64, "use_resolution_binning": False, "guidance_scale": 4.5, "negative_prompt": None}
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    return pipe, {**call, **embeds, "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def sana() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
        patch_size=1,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.SanaPipeline(transformer=eval_(transformer), scheduler=scheduler, **empty)
    mask = torch.ones(1, 7, dtype=torch.long)
    call = {"height": 128, "width": 128, "use_resolution_binning": False, "negative_prompt": None}
    embeds = {"prompt_embeds": noise(1, 7, 8), "negative_prompt_embeds": noise(1, 7, 8, seed=1)}
    return pipe, {**call, **embeds, "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def qwen_image(**call: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.QwenImagePipeline(
        transformer=eval_(transformer), scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02), **empty
    )
    mask = torch.ones(1, 7, dtype=torch.long)
    embeds = {"prompt_embeds": noise(1, 7, 16), "prompt_embeds_mask": mask}
    return pipe, {"height": 32, "width": 32, **embeds, **call}


def qwen_image_true_cfg() -> Tiny:
    mask = torch.ones(1, 5, dtype=torch.long)
    negative = {"negative_prompt_embeds": noise(1, 5, 16, seed=1), "negative_prompt_embeds_mask": mask}
    return qwen_image(true_cfg_scale=4.0, **negative)


def cogvideox(**call: Any) -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.CogVideoXPipeline(transformer=eval_(transformer), scheduler=scheduler, **empty)
    embeds = {"prompt_embeds": noise(1, 16, 32), "negative_prompt_embeds": noise(1, 16, 32, seed=1)}
    return pipe, {"height": 32, "width": 32, "num_frames": 8, "guidance_scale": 6.0, **embeds, **call}


def hunyuan_video() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    empty = nothing("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanVideoPipeline(transformer=eval_(transformer), scheduler=flow(shift=7.0), **empty)
    mask = torch.ones(1, 7, dtype=torch.long)
    embeds = {"prompt_embeds": noise(1, 7, 16), "pooled_prompt_embeds": noise(1, 8), "prompt_attention_mask": mask}
    return pipe, {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 6.0, **embeds}


def unet(**config: Any) -> Any:
    torch.manual_seed(0)
    fixed = {
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }
    return eval_(diffusers.UNet2DConditionModel(**{**fixed, **config}))


def sd15(scheduler: Any = None, **call: Any) -> Tiny:
    empty = nothing("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet(), scheduler=scheduler or ddim(), requires_safety_checker=False, **empty
    )
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    return pipe, {"height": 64, "width": 64, "guidance_scale": 7.5, **embeds, **call}


def sd15_pndm() -> Tiny:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return sd15(diffusers.PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1))


def sdxl(**call: Any) -> Tiny:
    empty = nothing("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    transformer = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
    )
    pipe = diffusers.StableDiffusionXLPipeline(unet=transformer, scheduler=scheduler, add_watermarker=False, **empty)
    embeds = {
        "prompt_embeds": noise(1, 7, 32),
        "pooled_prompt_embeds": noise(1, 32),
        "negative_prompt_embeds": noise(1, 7, 32, seed=1),
        "negative_pooled_prompt_embeds": noise(1, 32, seed=1),
    }
    return pipe, {"height": 64, "width": 64, "guidance_scale": 5.0, **embeds, **call}


def sdxl_rescaled() -> Tiny:
    return sdxl(guidance_rescale=0.5)


def dit() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer=eval_(transformer), vae=eval_(vae), scheduler=scheduler)
    return pipe, {"class_labels": [3], "guidance_scale": 4.0}


def mochi() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    pipe = diffusers.MochiPipeline(transformer=eval_(transformer), scheduler=flow(invert_sigmas=True), **empty)
    mask = torch.ones(1, 16, dtype=torch.bool)
    embeds = {"prompt_embeds": noise(1, 16, 16), "negative_prompt_embeds": noise(1, 16, 16, seed=1)}
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, {"height": 32, "width": 32, "num_frames": 7, "guidance_scale": 4.5, **embeds, **masks}


def lumina2() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=32,
    )
    empty = nothing("vae", "text_encoder", "tokenizer")
    scheduler = flow(use_dynamic_shifting=True)
    pipe = diffusers.Lumina2Pipeline(transformer=eval_(transformer), scheduler=scheduler, **empty)
    mask = torch.ones(1, 7, dtype=torch.bool)
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, {"height": 64, "width": 64, "guidance_scale": 4.0, **embeds, **masks}


def z_image() -> Tiny:
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # made without numbers in them
        token.data.normal_()
    empty = nothing("vae", "text_encoder", "tokenizer")
    scheduler = flow(use_dynamic_shifting=True)
    pipe = diffusers.ZImagePipeline(transformer=eval_(transformer), scheduler=scheduler, **empty)
    embeds = {"prompt_embeds": [noise(7, 16)], "negative_prompt_embeds": [noise(5, 16, seed=1)]}
    return pipe, {"height": 64, "width": 64, "guidance_scale": 5.0, **embeds}


def image_vae() -> Any:
    torch.manual_seed(1)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    config = {"block_out_channels": (4, 4), "down_block_types": down, "up_block_types": up, "shift_factor": 0.0}
    return eval_(diffusers.AutoencoderKL(**config, norm_num_groups=2, latent_channels=4))


def kontext() -> Tiny:
    """The tokens of an image behind those of x_t."""
    plain, call = flux_off()
    empty = nothing("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {"transformer": plain.transformer, "scheduler": plain.scheduler, "vae": image_vae()}
    pipe = diffusers.FluxKontextPipeline(**parts, **empty)
    return pipe, {**call, "image": picture(), "_auto_resize": False, "max_area": 32 * 32}


def img2img() -> Tiny:
    """Only the last steps of the scheduler's list."""
    plain, call = flux_off()
    empty = nothing("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {"transformer": plain.transformer, "scheduler": plain.scheduler, "vae": image_vae()}
    return diffusers.FluxImg2ImgPipeline(**parts, **empty), {
        **call,
        "image": picture(),
        "strength": 0.7,
        "num_inference_steps": 6,
    }


def inpaint(in_channels: int = 9) -> Tiny:
    """A mask and an image's latents as further channels; or, with 4 channels, latents put back after each step."""
    empty = nothing("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    parts = {"unet": unet(in_channels=in_channels), "vae": image_vae(), "scheduler": ddim()}
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, **empty, requires_safety_checker=False)
    mask = Image.new("L", (32, 32), 255)
    mask.paste(0, (0, 0, 16, 32))
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    return pipe, {"image": picture(), "mask_image": mask, "height": 32, "width": 32, "guidance_scale": 5.0, **embeds}


def pix2pix() -> Tiny:
    """Three branches, in sigma space, with an image's latents as further channels."""
    empty = nothing("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts = {"unet": unet(in_channels=8), "vae": image_vae(), "scheduler": scheduler}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, **empty, requires_safety_checker=False)
    embeds = {"prompt_embeds": noise(1, 7, 32), "negative_prompt_embeds": noise(1, 7, 32, seed=1)}
    return pipe, {"image": picture(), "guidance_scale": 7.5, "image_guidance_scale": 1.5, **embeds}


def picture() -> Image.Image:
    return Image.new("RGB", (32, 32), (200, 30, 60))


PIPELINES: dict[str, Callable[[], Tiny]] = {
    "flux": flux,
    "flux_true_cfg": flux_true_cfg,
    "flux_off": flux_off,
    "flux2": flux2,
    "sd3": sd3,
    "wan": wan,
    "wan_two": wan_two,
    "wan_expanded": wan_expanded,
    "ltx": ltx,
    "ltx_rescaled": ltx_rescaled,
    "pixart": pixart,
    "sana": sana,
    "qwen_image": qwen_image,
    "qwen_image_true_cfg": qwen_image_true_cfg,
    "cogvideox": cogvideox,
    "hunyuan_video": hunyuan_video,
    "sd15": sd15,
    "sd15_pndm": sd15_pndm,
    "sdxl": sdxl,
    "sdxl_rescaled": sdxl_rescaled,
    "dit": dit,
    "mochi": mochi,
    "lumina2": lumina2,
    "z_image": z_image,
    "kontext": kontext,
    "img2img": img2img,
    "inpaint": inpaint,
    "pix2pix": pix2pix,
}
