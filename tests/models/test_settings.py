"""Settings that methods share: an encoder's, flat or apart, and what they refuse."""

import polars as pl
import pytest
import torch
from pydantic import Field
from torch import nn

from diffuserec.data import Catalog
from diffuserec.errors import ConfigError
from diffuserec.models.config import Settings, parse_settings
from diffuserec.models.encoders import ENCODERS, SequenceEncoder
from diffuserec.models.encoders.caser import CaserEncoder
from diffuserec.models.encoders.gru import GRUEncoder
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.items import ItemTable
from diffuserec.models.methods import find_recommender, load
from diffuserec.models.settings import (
    ContrastiveSettings,
    EncoderSettings,
    LossSettings,
    NextItemSettings,
    TargetsSettings,
)
from diffuserec.recommenders.bert4rec import BERT4Rec
from diffuserec.recommenders.caser import Caser
from diffuserec.recommenders.cl4srec import CL4SRec
from diffuserec.recommenders.gru4rec import GRU4Rec
from diffuserec.recommenders.sasrec import SASRec

QUICK = {"dim": 8, "max_len": 9, "epochs": 2, "batch_size": 16, "learning_rate": 0.02}


class Flat(LossSettings, EncoderSettings):
    """Any encoder, without settings of an encoder among its own."""


def refusal(schema, **values):
    """Message of the error with which settings are refused, in one line."""
    with pytest.raises(ConfigError) as caught:
        parse_settings(schema, values, "It")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def n_weights(encoder):
    return sum(parameter.numel() for parameter in encoder.parameters())


# --- an encoder's settings ----------------------------------------------------------------------


def test_settings_of_the_encoder_stand_among_a_methods_own():
    settings = NextItemSettings(dim=12, n_layers=3, n_heads=4, dropout=0.1)
    assert settings.encoder_config() == TransformerEncoder.Config(n_layers=3, n_heads=4)
    table, encoder = settings.build_encoder(20, n_special=2, extra_positions=5, bias=True)
    assert isinstance(encoder, TransformerEncoder)
    assert [block.n_heads for block in encoder.layers] == [4, 4, 4]
    assert encoder.distances.weight.shape == (2 * 55 - 1, 4)
    assert encoder.dropout.p == 0.1
    assert encoder.causal
    assert table.weight().shape == (20, 13)
    assert table.embed(torch.tensor([21])).shape == (1, 12)


@pytest.mark.parametrize("schema", [Flat, NextItemSettings, ContrastiveSettings])
def test_settings_of_any_encoder_stand_apart(schema):
    settings = parse_settings(
        schema, {"encoder": "gru", "encoder_settings": {"hidden_dim": 7}, "dim": 5}, "It"
    )
    _, encoder = settings.build_encoder(20)
    assert isinstance(encoder, GRUEncoder)
    assert encoder.units.hidden_size == 7
    # without any, they are the encoder's own
    _, encoder = parse_settings(schema, {"encoder": "gru"}, "It").build_encoder(20)
    assert encoder.units.hidden_size == GRUEncoder.Config().hidden_dim


def test_a_method_without_settings_of_the_encoder_takes_them_apart():
    settings = Flat(encoder_settings={"n_layers": 1, "n_heads": 4}, dim=8)
    assert settings.encoder_config() == TransformerEncoder.Config(n_layers=1, n_heads=4)
    assert len(settings.build_encoder(20)[1].layers) == 1


@pytest.mark.parametrize(
    "method, kind",
    [(SASRec, TransformerEncoder), (GRU4Rec, GRUEncoder), (Caser, CaserEncoder)],
)
@pytest.mark.parametrize("encoder", [None, "transformer", "gru", "caser"])
def test_every_next_item_method_takes_every_encoder(cycle, method, kind, encoder):
    settings = {} if encoder is None else {"encoder": encoder}
    model = method(**QUICK | {"epochs": 1}, **settings).fit(cycle)
    expected = kind if encoder is None else ENCODERS.find(encoder)
    assert type(model.encoder) is expected


def test_one_encoder_by_two_methods_is_one_model(cycle):
    first = SASRec(**QUICK, encoder="gru", encoder_settings={"hidden_dim": 6}).fit(cycle)
    second = GRU4Rec(**QUICK, hidden_dim=6).fit(cycle)
    assert [epoch.loss for epoch in first.curve] == [epoch.loss for epoch in second.curve]
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "schema, values, message",
    [
        (
            Flat,
            {"encoder": "grru"},
            "It: encoder: no encoder 'grru' (did you mean 'gru'?); there are: bsarec, ",
        ),
        (
            Flat,
            {"encoder": "gru", "encoder_settings": {"hiden_dim": 3}},
            "It: settings: encoder_settings of gru has no setting 'hiden_dim' (did you mean "
            "'hidden_dim'?); it has: hidden_dim, got",
        ),
        (
            Flat,
            {"encoder": "gru", "encoder_settings": {"hidden_dim": 0}},
            "It: settings: encoder_settings of gru: hidden_dim: must be greater than or",
        ),
        (
            NextItemSettings,
            {"encoder_settings": {"n_layers": 3}},
            "It: settings: encoder_settings has 'n_layers', a setting of the method: set "
            "n_layers itself",
        ),
        (
            NextItemSettings,
            {"encoder": "gru", "n_layers": 3},
            "It: settings: n_layers = 3 has no effect with encoder = 'gru': it needs an encoder "
            "of several layers",
        ),
        (
            ContrastiveSettings,
            {"encoder": "caser", "n_heads": 4},
            "It: settings: n_heads = 4 has no effect with encoder = 'caser': it needs an encoder "
            "with attention heads",
        ),
        (
            GRU4Rec.Config,
            {"encoder": "transformer", "hidden_dim": 9},
            "It: settings: hidden_dim = 9 has no effect with encoder = 'transformer': it needs "
            "encoder = 'gru'",
        ),
        (NextItemSettings, {"dim": 9}, "It: settings: dim 9 is not divisible by n_heads 2"),
        (
            Flat,
            {"dim": 8, "encoder_settings": {"n_heads": 3}},
            "It: settings: dim 8 is not divisible by n_heads 3",
        ),
        (
            TargetsSettings,
            {"n_targets": 2, "examples": "prefixes"},
            "It: settings: n_targets 2 needs examples of several targets: 'per_user', 'windows'",
        ),
        (
            ContrastiveSettings,
            {"batch_size": 1},
            "It: settings: batch_size 1 leaves a sequence nothing to be contrasted with",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(schema, values, message):
    assert refusal(schema, **values).startswith(message)


def test_a_width_that_no_head_divides_is_no_matter_without_heads():
    assert NextItemSettings(dim=9, encoder="gru").build_encoder(5)[0].weight().shape == (5, 9)


# --- looking ahead ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["gru", "caser"])
def test_an_encoder_that_reads_forward_only_is_not_asked_to_look_ahead(cycle, encoder):
    message = rf"^encoder '{encoder}' reads forward only: choose one that sees both ways$"
    with pytest.raises(ConfigError, match=message):
        NextItemSettings(encoder=encoder).make_encoder(causal=False)
    with pytest.raises(ConfigError, match=message):
        NextItemSettings(encoder=encoder).build_encoder(20, causal=False)
    with pytest.raises(ConfigError, match=f"encoder (= )?'{encoder}'.*both ways") as caught:
        BERT4Rec(**QUICK, encoder=encoder).fit(cycle)
    assert "\n" not in str(caught.value)


def test_a_transformer_looks_ahead_where_it_is_asked_to():
    embeddings, lengths = torch.randn(1, 4, 8), torch.tensor([4])
    changed = embeddings.clone()
    changed[0, 3, :4] += 1
    for causal in (True, False):
        encoder = NextItemSettings(n_layers=1, dim=8).make_encoder(causal).eval()
        first = [encoder(given, lengths)[0, 0] for given in (embeddings, changed)]
        assert torch.equal(*first) == causal


# --- an encoder of one's own --------------------------------------------------------------------


class Decay(SequenceEncoder):
    """A state is the weighted sum of the embeddings so far, through a linear layer."""

    class Config(Settings):
        """Settings of the decay."""

        n_layers: int = Field(1, ge=1)
        rate: float = Field(0.5, gt=0, lt=1)

    def __init__(self, dim, max_len, dropout, own, causal=True):
        super().__init__()
        self.given = (dim, max_len, dropout, own, causal)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(own.n_layers))
        age = torch.arange(max_len)[:, None] - torch.arange(max_len)
        self.register_buffer("weights", (own.rate**age).tril())

    @classmethod
    def check(cls, own, dim):
        if own.rate * dim > 100:
            raise ValueError(f"rate {own.rate} is too slow for dim {dim}")

    def forward(self, embeddings, lengths):
        length = embeddings.shape[1]
        states = self.weights[:length, :length] @ embeddings
        for layer in self.layers:
            states = layer(states)
        return states


ENCODERS.register("decay", Decay)


@pytest.mark.parametrize("method", [SASRec, CL4SRec])
def test_a_method_takes_an_encoder_of_ones_own(cycle, tmp_path, method):
    model = method(
        **QUICK, encoder="decay", n_layers=2, dropout=0.2, encoder_settings={"rate": 0.25}
    ).fit(cycle)
    assert model.encoder.given == (8, 9, 0.2, Decay.Config(n_layers=2, rate=0.25), True)
    assert model.curve[1].loss < model.curve[0].loss
    # its initial weights were drawn as those of the others
    fresh = NextItemSettings(encoder="decay", dim=50).build_encoder(20)[1]
    assert not fresh.layers[0].bias.any()
    assert fresh.layers[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == model.config
    asked = [[3, 4, 5], [20]]
    assert again.recommend(asked, 5).equals(model.recommend(asked, 5))


def test_what_an_encoder_of_ones_own_cannot_do_is_refused():
    assert "rate 0.5 is too slow for dim 300" in refusal(Flat, encoder="decay", dim=300)
    message = refusal(NextItemSettings, encoder="decay", n_heads=4)
    assert "n_heads = 4 has no effect with encoder = 'decay'" in message
    message = refusal(Flat, encoder="decay", encoder_settings={"rate": 1.0})
    assert "encoder_settings of decay: rate: must be less than 1" in message
    with pytest.raises(ConfigError, match="'decay' reads forward only"):
        Flat(encoder="decay").build_encoder(20, causal=False)


def test_what_is_no_encoder_is_not_registered():
    class Wide(Decay):
        class Config(Settings):
            dim: int = 3
            dropout: float = 0.1

    with pytest.raises(ConfigError, match=r"^an encoder is a subclass of SequenceEncoder, got <"):
        ENCODERS.register("linear", nn.Linear)
    with pytest.raises(ConfigError, match=r"^Wide.Config has dim, dropout, which every encoder is"):
        ENCODERS.register("wide", Wide)
    assert not {"linear", "wide"} & set(ENCODERS.names())


def test_initial_weights_are_drawn_in_one_order():
    settings = NextItemSettings(dim=4, n_layers=1, n_heads=1, max_len=3)
    torch.manual_seed(5)
    table, encoder = settings.build_encoder(6)
    torch.manual_seed(5)
    nn.Embedding(6, 4)
    TransformerEncoder(4, 3, 0.5, TransformerEncoder.Config(n_layers=1, n_heads=1))
    expected = torch.empty(6, 4).normal_(std=0.02)
    assert torch.equal(table.embeddings()[1:], expected[1:])
    # then the encoder's own, distances first
    assert torch.equal(encoder.distances.weight, torch.empty(5, 1).normal_(std=0.02))


@pytest.mark.parametrize("name", ["transformer", "ligr", "hstu", "bsarec", "bsarec_causal", "fmlp"])
def test_the_width_of_initial_weights_is_a_setting(name) -> None:
    made = []
    for std in (0.02, 0.1):
        torch.manual_seed(0)
        built = EncoderSettings(encoder=name, dim=16, init_std=std).build_encoder(50)
        made.append([*built[0].state_dict().items(), *built[1].state_dict().items()])
    for (key, narrow), (_, wide) in zip(*made, strict=True):
        drawn = not key.endswith(("bias", "beta")) and "norm" not in key
        torch.testing.assert_close(wide, 5 * narrow if drawn else narrow, rtol=1e-5, atol=0)
        assert not drawn or narrow.any()
    with pytest.raises(ConfigError, match="init_std: must be greater than 0"):
        SASRec(init_std=0)


def test_all_item_tables_of_a_method_have_the_width_of_the_settings() -> None:
    catalog = Catalog(pl.Series("item_id", range(1, 2001)), 3)
    for name, settings in (
        ("sasrec", {}),
        ("gru4rec", {}),
        ("stosa", {}),
        ("acvae", {"tied": False}),
        ("diffrec", {"tie_head": False}),
        ("ecl", {}),
    ):
        method = find_recommender(name)(init_std=0.3, dim=16, **settings)
        method.take(catalog)
        tables = [m for m in method.modules() if isinstance(m, ItemTable)]
        tables = [m for m in tables if m.vocab_size == catalog.vocab_size]
        assert tables
        for table in tables:
            assert table.vectors.weight.std().item() == pytest.approx(0.3, rel=0.03), name


@pytest.mark.parametrize("name", ["cadirec", "simdiffrec", "mfgan", "vsan"])
def test_heads_of_a_methods_own_blocks_are_those_of_its_encoder_too(name) -> None:
    config = find_recommender(name)(n_heads=4).config
    assert config.encoder_config().n_heads == 4


def test_a_field_of_the_same_name_is_not_the_encoders() -> None:
    """An encoder of another package may have a setting that a method has for itself."""

    class Masking(GRUEncoder):
        class Config(GRUEncoder.Config):
            mask_ratio: float = 0.9

    ENCODERS.register("masking", Masking)
    config = CL4SRec(encoder="masking", mask_ratio=0.4).config
    assert config.encoder_config().mask_ratio == 0.9
    own = CL4SRec(encoder="masking", encoder_settings={"mask_ratio": 0.1}).config
    assert (own.mask_ratio, own.encoder_config().mask_ratio) == (0.3, 0.1)


def test_a_method_that_hides_its_targets_takes_an_encoder_that_always_looks_ahead() -> None:
    class Both(TransformerEncoder):
        sees = "both"

    ENCODERS.register("both", Both)
    config = BERT4Rec(encoder="both").config
    assert config.make_encoder(causal=False).sees == "both"
    with pytest.raises(ConfigError, match="would see the targets"):
        SASRec(encoder="both")
