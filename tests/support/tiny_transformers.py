"""Depth networks of transformers with a few thousand weights, saved as published ones are."""

from __future__ import annotations

import json

import torch

METRIC = {"depth_estimation_type": "metric", "max_depth": 20}
TWO_HEADS = {
    "bin_centers_type": "normed",  # as in the published network with two heads
    "bin_configurations": [
        {"name": "nyu", "n_bins": 8, "min_depth": 1e-3, "max_depth": 10.0},
        {"name": "kitti", "n_bins": 8, "min_depth": 1e-3, "max_depth": 80.0},
    ],
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,  # required by the router of the library
    "patch_transformer_intermediate_size": 16,
    "patch_transformer_num_attention_heads": 2,
}
FIELD_OF_VIEW = {"use_fov_model": True}
OWN_PROCESSORS = {
    # Settings of the library's classes, with tiny sizes.
    "depth_pro": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "DepthProImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 128, "width": 128},
    },
    "tipsv2_dpt": {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "Tipsv2DptImageProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 56, "width": 56},
    },
}
PATCHES = {"patch_size": 14, "reassemble_hidden_size": 16, "head_hidden_size": 8}
TWO_STAGES = {"neck_hidden_sizes": [8, 8], "reassemble_factors": [2, 1], "fusion_hidden_size": 8}
FOUR_STAGES = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}


def _dinov2(hf, image_size=28, patch_size=14):
    return hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=image_size,
        patch_size=patch_size, out_indices=[1, 2], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip


def _depth_anything(hf, config):
    return hf.DepthAnythingForDepthEstimation(
        hf.DepthAnythingConfig(backbone_config=_dinov2(hf), **PATCHES, **TWO_STAGES, **config)
    )


def _prompt_depth_anything(hf, config):
    return hf.PromptDepthAnythingForDepthEstimation(
        hf.PromptDepthAnythingConfig(backbone_config=_dinov2(hf), **PATCHES, **TWO_STAGES, **config)
    )


def _dpt_dinov2(hf, config):
    return hf.DPTForDepthEstimation(hf.DPTConfig(backbone_config=_dinov2(hf), **TWO_STAGES, **config))


def _dpt(hf, config):
    return hf.DPTForDepthEstimation(
        hf.DPTConfig(
            image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
            intermediate_size=16, backbone_out_indices=[0, 1, 2, 3], **FOUR_STAGES, **config,
        )
    )  # fmt: skip


def _glpn(hf, config):
    ones = [1] * 4
    return hf.GLPNForDepthEstimation(
        hf.GLPNConfig(
            hidden_sizes=[8] * 4, depths=ones, num_attention_heads=ones, mlp_ratios=ones, decoder_hidden_size=8,
            **config,
        )
    )  # fmt: skip


def _depth_pro(hf, config):
    encoders = {f"{name}_model_config": _dinov2(hf, 32, 8) for name in ("image", "patch", "fov")}
    return hf.DepthProForDepthEstimation(
        hf.DepthProConfig(
            patch_size=32, fusion_hidden_size=8, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
            scaled_images_feature_dims=[8, 8, 8], num_fov_head_layers=1, **encoders, **config,
        )
    )  # fmt: skip


def _tipsv2_dpt(hf, config):
    backbone = hf.Tipsv2VisionConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = {"num_depth_bins": 16, **config}
    return hf.Tipsv2DptForDepthEstimation(hf.Tipsv2DptConfig(backbone_config=backbone, **FOUR_STAGES, **config))


def _zoedepth(hf, config):
    backbone = hf.BeitConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False, use_relative_position_bias=True,
    )  # fmt: skip
    bins = [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}]
    return hf.ZoeDepthForDepthEstimation(
        hf.ZoeDepthConfig(
            backbone_config=backbone, bottleneck_features=8, num_relative_features=8, bin_embedding_dim=8,
            num_attractors=[4, 2, 2, 1], backbone_hidden_size=16,
            **{"bin_configurations": bins, **FOUR_STAGES, **config},
        )
    )  # fmt: skip


BUILDERS = {
    "depth_anything": _depth_anything,
    "depth_pro": _depth_pro,
    "dpt": _dpt,
    "dpt_dinov2": _dpt_dinov2,
    "glpn": _glpn,
    "prompt_depth_anything": _prompt_depth_anything,
    "tipsv2_dpt": _tipsv2_dpt,
    "zoedepth": _zoedepth,
}


def build_network(family, **config):
    import transformers as hf

    torch.manual_seed(0)
    return BUILDERS[family](hf, config)


def build_processor(family, **settings):
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
    from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil
    from transformers.models.prompt_depth_anything.image_processing_pil_prompt_depth_anything import (
        PromptDepthAnythingImageProcessorPil,
    )
    from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

    if family == "glpn":
        return GLPNImageProcessorPil(**settings)
    if family == "zoedepth":
        return ZoeDepthImageProcessorPil(size={"height": 64, "width": 64}, ensure_multiple_of=16, **settings)
    multiple = 16 if family == "dpt" else 14
    size = {"height": 2 * multiple, "width": 2 * multiple}
    made = PromptDepthAnythingImageProcessorPil if family == "prompt_depth_anything" else DPTImageProcessorPil
    return made(size=size, keep_aspect_ratio="anything" in family, ensure_multiple_of=multiple, **settings)


def save_model(folder, family, processor=None, **config):
    """Save a tiny network and its processor; return the network."""
    network = build_network(family, **config)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)  # the default initialization gives the same depth everywhere
    if getattr(network, "fov_model", None) is not None:
        torch.nn.init.constant_(network.fov_model.head.layers[-1].bias, 60)  # degrees, as of a trained network
    if family == "depth_pro":
        torch.nn.init.constant_(network.head.layers[-2].bias, 1)  # otherwise most depths are infinite
    network.save_pretrained(folder)
    if family in OWN_PROCESSORS:
        settings = {**OWN_PROCESSORS[family], **(processor or {})}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        build_processor(family, **(processor or {})).save_pretrained(folder)
    return network.eval()
