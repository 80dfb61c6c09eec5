import pytest

from qvl.loading.names import parameter_name

QWEN2 = {
    "visual.patch_embed.proj.weight": "model.visual.patch_embed.proj.weight",
    "visual.blocks.0.mlp.fc1.bias": "model.visual.blocks.0.mlp.linear_fc1.bias",
    "visual.blocks.31.mlp.fc2.weight": "model.visual.blocks.31.mlp.linear_fc2.weight",
    "visual.merger.ln_q.weight": "model.visual.merger.norm.weight",
    "visual.merger.mlp.0.weight": "model.visual.merger.linear_fc1.weight",
    "visual.merger.mlp.2.bias": "model.visual.merger.linear_fc2.bias",
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.layers.3.mlp.up_proj.weight": "model.language_model.layers.3.mlp.up_proj.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "language_model.norm.weight": "model.language_model.norm.weight",
    "model.visual.merger.ln_q.bias": "model.visual.merger.norm.bias",
    "model.language_model.norm.weight": "model.language_model.norm.weight",
}
QWEN3 = {
    "model.visual.merger.norm.weight": "model.visual.merger.norm.weight",
    "model.visual.pos_embed.weight": "model.visual.pos_embed.weight",
    "visual.deepstack_merger_list.2.norm.bias": "model.visual.deepstack_merger_list.2.norm.bias",
    "language_model.layers.0.self_attn.q_norm.weight": (
        "model.language_model.layers.0.self_attn.q_norm.weight"
    ),
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize(("stored", "ours"), QWEN2.items())
def test_every_scheme_of_qwen2_vl_becomes_ours(stored: str, ours: str) -> None:
    assert parameter_name(stored, "qwen2_vl") == ours


@pytest.mark.parametrize(("stored", "ours"), QWEN3.items())
def test_every_scheme_of_qwen3_vl_becomes_ours(stored: str, ours: str) -> None:
    assert parameter_name(stored, "qwen3_vl") == ours


def test_our_own_names_stay_as_they_are() -> None:
    for ours in {*QWEN2.values(), *QWEN3.values()}:
        assert parameter_name(ours, "qwen2_vl") == parameter_name(ours, "qwen3_vl") == ours
