"""Settings as published: accepted, other than the defaults, and the ones that the pages name."""

import re
from pathlib import Path

import pytest

from diffuserec import SASRec, find_augmenter, find_recommender, method_names
from diffuserec.errors import ConfigError
from diffuserec.models.methods import method_settings, preset_of

PAGES = Path(__file__).parents[2] / "docs" / "methods"

PRESETS = {
    "bsarec": {
        "encoder": "bsarec",
        "attention_dropout": 0.5,
        "examples": "newest_prefixes",
        "first_items": True,
        "by_length": False,
        "learning_rate": 5e-4,
        "batch_size": 256,
        "epochs": 200,
        "average_epochs": 0.0,
    },
    "hstu": {
        "dim": 50,
        "max_len": 200,
        "n_layers": 8,
        "n_heads": 2,
        "time_bias": True,
        "loss": "sampled_softmax",
        "n_negatives": 128,
        "epochs": 101,
        "patience": 101,
        "average_epochs": 0.0,
    },
    "esasrec": {"dim": 256, "n_layers": 1, "n_heads": 1, "epochs": 200, "average_epochs": 0.0},
    "gsasrec": {
        "dim": 128,
        "max_len": 200,
        "gbce_offset": False,
        "epochs": 21_000,
        "patience": 425,
        "average_epochs": 0.0,
    },
    "asrep": {"condition": "published"},
    "random": {"condition": "published"},
    "random_seq": {"condition": "published"},
    "diffuasr": {
        "condition": "published",
        "channels": 8,
        "prediction_type": "epsilon",
        "item_embedding": "scratch",
        "condition_on": "train+valid",
        "min_condition": 1,
        "cond_dropout": 0.0,
        "guidance_in_training": True,
        "num_inference_steps": 1000,
        "eta": 1.0,
        "position_encoding": "from_oldest",
        "average_epochs": 0.0,
    },
    "diff4rec": {
        "kl_weight": 1.0,
        "kl_annealing_steps": 1,
        "corruption": 1.0,
        "num_inference_steps": 100,
        "aug_weight": 1.0,
        "copies_per_step": "all",
    },
    "adrec": {
        "position_encoding": "none",
        "dim": 128,
        "n_heads": 4,
        "dropout": 0.1,
        "weight_decay": 1e-5,
        "rate_decay": "cosine",
        "batch_size": 512,
        "epochs": 500,
        "pretrain_epochs": 500,
        "mse_weight": 1.0,
        "detach_target": False,
        "average_epochs": 0.0,
    },
    "diffurec": {
        "examples": "prefixes",
        "position_encoding": "none",
        "dim": 128,
        "n_layers": 4,
        "n_heads": 4,
        "dropout": 0.1,
        "batch_size": 512,
        "epochs": 500,
        "num_inference_steps": 32,
        "average_epochs": 0.0,
    },
    "fmlprec": {"loss": "bce", "average_epochs": 0.0},
    "diffrec": {
        "form": "prefixes",
        "position_encoding": "from_newest",
        "dim": 256,
        "max_len": 49,
        "dropout": 0.3,
        "batch_size": 256,
        "epochs": 50,
        "patience": 50,
        "tie_head": False,
        "normalize": False,
        "damping": None,
        "add_last_item": False,
        "pure_noise": 0.0,
        "mse_weight": 1.0,
        "average_epochs": 0.0,
    },
    "simdiffrec": {
        "loss": "bce",
        "batch_size": 256,
        "contrast_weight": 0.4,
        "diffusion_weight": 0.4,
        "mse_weight": 1.0,
        "position_encoding": "from_oldest",
        "average_epochs": 0.0,
    },
}


def find(name: str):  # type: ignore[no-untyped-def]
    return (find_augmenter if name in method_names("augmenter") else find_recommender)(name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_differs_from_the_defaults_in_just_these(name: str) -> None:
    method = find(name)
    assert method.as_published == PRESETS[name]
    published, default = dict(method(**method.as_published).config), dict(method().config)
    changed = {key: value for key, value in published.items() if value != default[key]}
    assert changed == PRESETS[name]
    shown = {setting["name"]: setting["as_published"] for setting in method_settings(name)[2]}
    assert shown.keys() == default.keys()
    texts = {key: "none" if value is None else str(value) for key, value in changed.items()}
    assert {key: text for key, text in shown.items() if text} == texts


@pytest.mark.parametrize("name", [name for name in PRESETS if len(PRESETS[name]) > 1])
def test_the_page_gives_a_reason_for_each(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    section = page.partition("## As published\n")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [setting for cell in first_cells for setting in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(PRESETS[name])


def test_other_methods_have_none() -> None:
    having = {
        name
        for kind in ("recommender", "augmenter")
        for name in method_names(kind)  # type: ignore[arg-type]
        if find(name).as_published
    }
    assert having == set(PRESETS)


def test_a_preset_of_a_recommender_and_its_augmenter() -> None:
    assert preset_of(SASRec, find_augmenter("diff4rec")) == ({}, PRESETS["diff4rec"])
    own, augmenters = preset_of(find_recommender("diffrec"), None)
    assert augmenters == {}
    assert PRESETS["diffrec"].items() <= own.items()
    with pytest.raises(ConfigError, match=r"diffrec \(recommender\), .*diffuasr \(augmenter\)"):
        preset_of(SASRec, None)
