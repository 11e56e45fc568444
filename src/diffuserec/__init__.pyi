# Made by tools/make_stub.py (make stub): the public names and every method's settings.
from collections.abc import Mapping
from typing import Literal

from diffuserec.data.catalog import Catalog as Catalog
from diffuserec.data.dataset import SequenceDataset as SequenceDataset
from diffuserec.data.interactions import Interactions as Interactions
from diffuserec.data.interactions import from_dataset as from_dataset
from diffuserec.data.interactions import from_frame as from_frame
from diffuserec.data.interactions import read_log as read_log
from diffuserec.data.splits import Queries as Queries
from diffuserec.data.splits import Split as Split
from diffuserec.data.splits import leave_one_out as leave_one_out
from diffuserec.data.splits import temporal as temporal
from diffuserec.data.storage import load_dataset as load_dataset
from diffuserec.data.store import Store as Store
from diffuserec.errors import ConfigError as ConfigError
from diffuserec.errors import DataError as DataError
from diffuserec.evaluation.evaluate import Evaluation as Evaluation
from diffuserec.evaluation.evaluate import evaluate as evaluate
from diffuserec.evaluation.significance import check_consistency as check_consistency
from diffuserec.evaluation.significance import compare as compare
from diffuserec.models.augmenter import Augmenter as Augmenter
from diffuserec.models.base import Runtime as Runtime
from diffuserec.models.choice import recommender_for as recommender_for
from diffuserec.models.methods import find_augmenter as find_augmenter
from diffuserec.models.methods import find_recommender as find_recommender
from diffuserec.models.methods import load as load
from diffuserec.models.methods import load_augmenter as load_augmenter
from diffuserec.models.methods import method_names as method_names
from diffuserec.models.methods import register as register
from diffuserec.models.recommender import Recommender as Recommender
from diffuserec.reports.report import Report as Report
from diffuserec.recommenders.acvae import ACVAE as _ACVAE
from diffuserec.recommenders.bert4rec import BERT4Rec as _BERT4Rec
from diffuserec.recommenders.blend import Blend as _Blend
from diffuserec.recommenders.bpr import BPR as _BPR
from diffuserec.recommenders.bsarec import BSARec as _BSARec
from diffuserec.recommenders.cadirec import CaDiRec as _CaDiRec
from diffuserec.recommenders.caser import Caser as _Caser
from diffuserec.recommenders.cl4srec import CL4SRec as _CL4SRec
from diffuserec.recommenders.contrarec import ContraRec as _ContraRec
from diffuserec.recommenders.diffrec import DiffRec as _DiffRec
from diffuserec.recommenders.diffurec import DiffuRec as _DiffuRec
from diffuserec.recommenders.dreamrec import DreamRec as _DreamRec
from diffuserec.recommenders.duorec import DuoRec as _DuoRec
from diffuserec.recommenders.ecl import ECL as _ECL
from diffuserec.recommenders.esasrec import ESASRec as _ESASRec
from diffuserec.recommenders.flow import Flow as _Flow
from diffuserec.recommenders.fmlprec import FMLPRec as _FMLPRec
from diffuserec.recommenders.gru4rec import GRU4Rec as _GRU4Rec
from diffuserec.recommenders.gsasrec import GSASRec as _GSASRec
from diffuserec.recommenders.hstu import HSTU as _HSTU
from diffuserec.recommenders.itemgraph import ItemGraph as _ItemGraph
from diffuserec.recommenders.itemknn import ItemKNN as _ItemKNN
from diffuserec.recommenders.markov import Markov as _Markov
from diffuserec.recommenders.mclrec import MCLRec as _MCLRec
from diffuserec.recommenders.mfgan import MFGAN as _MFGAN
from diffuserec.recommenders.neumf import NeuMF as _NeuMF
from diffuserec.recommenders.popularity import Popularity as _Popularity
from diffuserec.recommenders.s3rec import S3Rec as _S3Rec
from diffuserec.recommenders.sasrec import SASRec as _SASRec
from diffuserec.recommenders.simdiffrec import SimDiffRec as _SimDiffRec
from diffuserec.recommenders.stosa import STOSA as _STOSA
from diffuserec.recommenders.vsan import VSAN as _VSAN
from diffuserec.augmenters.asrep import ASReP as _ASReP
from diffuserec.augmenters.diff4rec import Diff4Rec as _Diff4Rec
from diffuserec.augmenters.diffuasr import DiffuASR as _DiffuASR
from diffuserec.augmenters.maskdiff import MaskDiff as _MaskDiff
from diffuserec.augmenters.random import Random as _Random
from diffuserec.augmenters.random_seq import RandomSeq as _RandomSeq

__version__: str
__all__ = ['Augmenter', 'Catalog', 'ConfigError', 'DataError', 'Evaluation', 'Interactions', 'Queries', 'Recommender', 'Report', 'Runtime', 'SequenceDataset', 'Split', 'Store', 'check_consistency', 'compare', 'evaluate', 'find_augmenter', 'find_recommender', 'from_dataset', 'from_frame', 'leave_one_out', 'load', 'load_augmenter', 'load_dataset', 'method_names', 'read_log', 'recommender_for', 'register', 'temporal']

class ACVAE(_ACVAE):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.01, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'gru', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, hidden_dim: int = 128, kl_weight: float = 0.001, contrast_weight: float = 0.1, adversary_learning_rate: float = 0.001, adversary_weight_decay: float = 0.1, tied: bool = True, n_draws: int = 3) -> None: ...

class BERT4Rec(_BERT4Rec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 200, patience: int = 20, dim: int = 64, max_len: int = 50, dropout: float = 0.2, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'linear', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'from_oldest', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, mask_ratio: float = 0.2, last_item_ratio: float = 0.1) -> None: ...

class Blend(_Blend):
    def __init__(self, *, parts: tuple[str, ...] = ('sasrec', 'markov'), settings: Mapping[str, object] = {}) -> None: ...

class BPR(_BPR):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 1024, epochs: int = 100, patience: int = 10, dim: int = 64, loss: Literal['bpr', 'softmax', 'bce'] = 'bpr', n_negatives: int = 1, l2_users: float = 0.01, l2_items: float = 0.01, l2_bias: float = 0.0) -> None: ...

class BSARec(_BSARec):
    def __init__(self, *, tie_head: bool = True, input_noise: float = 0.0, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'bsarec_causal', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 1, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False, alpha: float = 0.7, n_low: int = 3) -> None: ...

class CaDiRec(_CaDiRec):
    def __init__(self, *, num_train_timesteps: int = 1000, beta_schedule: Literal['sqrt', 'linear', 'cosine'] = 'sqrt', learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'dot', temperature: float = 1.0, n_denoiser_layers: int = 2, contrast_weight: float = 0.1, diffusion_weight: float = 0.2, mse_weight: float = 0.0, noise_ratio: float = 0.1, n_best: int = 10, normalize: bool = True, denoiser_dropout: float = 0.2) -> None: ...

class Caser(_Caser):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'caser', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, n_targets: int = 1, first_items: bool = False, window: int = 5, n_horizontal: int = 16, n_vertical: int = 4, relu_output: bool = False) -> None: ...

class CL4SRec(_CL4SRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'dot', temperature: float = 1.0, contrast_weight: float = 0.1, operators: tuple[Literal['crop', 'mask', 'reorder', 'substitute', 'insert'], ...] = ('crop', 'mask', 'reorder'), crop_ratio: float = 0.6, mask_ratio: float = 0.3, reorder_ratio: float = 0.6, substitute_ratio: float = 0.1, insert_ratio: float = 0.4, mask_with: Literal['token', 'padding'] = 'token') -> None: ...

class ContraRec(_ContraRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'cosine', temperature: float = 0.2, score_temperature: float = 1.0, contrast_weight: float = 1.0, bidirectional: bool = False) -> None: ...

class DiffRec(_DiffRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', num_train_timesteps: int = 1000, beta_schedule: Literal['sqrt', 'cosine', 'linear'] = 'sqrt', num_inference_steps: int = 1, form: Literal['two_stream', 'prefixes'] = 'two_stream', slot: Literal['diffused', 'empty'] = 'diffused', step_sampling: Literal['importance', 'uniform'] = 'importance', step_weight: Literal['normalized', 'literal'] = 'normalized', pure_noise: float = 0.5, mse_weight: float = 0.01, mse_reduction: Literal['mean', 'sum'] = 'mean', detach_target: bool = False, prior_loss: bool = False, rounding_loss: bool = False, targets: Literal['all', 'last'] = 'all', noise_last: int = 1, noised_history: Literal['always', 'training'] = 'always', normalize: bool = True, damping: float | None = 0.3, add_last_item: bool = True, tie_head: bool = True, step_embedding: bool = True, rescale_steps: bool = False, n_train_draws: int = 1, n_draws: int = 10, n_candidates: int | None = None) -> None: ...

class DiffuRec(_DiffuRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, num_train_timesteps: int = 32, beta_schedule: Literal['trunc_linear', 'linear', 'cosine', 'sqrt'] = 'trunc_linear', num_inference_steps: int = 4, first_items: bool = False, delta: float = 0.001, n_draws: int = 1) -> None: ...

class DreamRec(_DreamRec):
    def __init__(self, *, learning_rate: float = 0.003, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.1, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 1, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', num_train_timesteps: int = 500, beta_schedule: Literal['linear', 'cosine', 'exp', 'sqrt'] = 'linear', num_inference_steps: int = 50, denoiser: Literal['mlp1', 'mlp2'] = 'mlp1', detach_target: bool = True, train_items: bool = True, cond_dropout: float = 0.1, guidance_scale: float = 2.0, eta: float = 1.0, n_draws: int = 1, targets: Literal['all', 'last'] = 'all') -> None: ...

class DuoRec(_DuoRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'dot', temperature: float = 1.0, contrast_weight: float = 0.1, positive: Literal['same_target', 'dropout'] = 'same_target') -> None: ...

class ECL(_ECL):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'cosine', temperature: float = 0.05, contrast_weight: float = 0.1, discriminator_weight: float = 0.01, generator_weight: float = 0.02, mask_ratio: float = 0.2, n_last: int = 10, discriminator: Literal['shared', 'own'] = 'shared') -> None: ...

class ESASRec(_ESASRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 128, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.2, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'ligr', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'sampled_softmax', n_negatives: int | None = 256, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False, widening: int = 4) -> None: ...

class Flow(_Flow):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, gbce_t: float = 0.75, first_items: bool = False, bridge_noise: float = 3.0, start_share: float = 0.5, num_inference_steps: int = 2, n_draws: int = 4) -> None: ...

class FMLPRec(_FMLPRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 256, epochs: int = 200, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'fmlp', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'newest_prefixes', by_length: bool = False, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = True) -> None: ...

class GRU4Rec(_GRU4Rec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'gru', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False, hidden_dim: int = 128) -> None: ...

class GSASRec(_GSASRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 128, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 1, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'from_newest', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'gbce', n_negatives: int | None = 256, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False) -> None: ...

class HSTU(_HSTU):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 128, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.2, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'hstu', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 1, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False, time_bias: bool = False) -> None: ...

class ItemGraph(_ItemGraph):
    def __init__(self, *, n_newest: int = 2, decay: float = 0.5, window: int = 5, backward: float = 0.3, scaling: Literal['share', 'log', 'cosine'] = 'log', n_hops: int = 1, hop_decay: float = 0.1) -> None: ...

class ItemKNN(_ItemKNN):
    def __init__(self, *, k: int | None = None, decay: float = 1.0, max_len: int | None = 50) -> None: ...

class Markov(_Markov):
    def __init__(self, *, decay: float = 0.7) -> None: ...

class MCLRec(_MCLRec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'dot', temperature: float = 1.0, contrast_weight: float = 0.0, learned_weight: float = 0.05, crop_ratio: float = 0.5, mask_ratio: float = 0.5, reorder_ratio: float = 0.8, mask_with: Literal['padding', 'token'] = 'padding', joint: bool = False) -> None: ...

class MFGAN(_MFGAN):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, rounds: int = 2, discriminator_epochs: int = 1, generator_epochs: int = 3, generator: Literal['policy', 'reweighted'] = 'policy', next_item_weight: float = 10.0, n_candidates: int = 10, attributes: tuple[str, ...] | None = None, discriminator_dropout: float = 0.25) -> None: ...

class NeuMF(_NeuMF):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 1024, epochs: int = 100, patience: int = 10, dim: int = 64, hidden: tuple[int, ...] = (32, 16), dropout: float = 0.5, n_negatives: int = 4, l2_users: float = 0.003, l2_items: float = 0.003) -> None: ...

class Popularity(_Popularity):
    def __init__(self) -> None: ...

class S3Rec(_S3Rec):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, pretrain_epochs: int = 100, pretrain_examples: Literal['per_user', 'windows', 'prefixes'] = 'per_user', mask_ratio: float = 0.2, item_weight: float = 1.0, segment_weight: float = 0.5) -> None: ...

class SASRec(_SASRec):
    def __init__(self, *, tie_head: bool = True, input_noise: float = 0.0, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, first_items: bool = False) -> None: ...

class SimDiffRec(_SimDiffRec):
    def __init__(self, *, num_train_timesteps: int = 1000, beta_schedule: Literal['sqrt', 'linear', 'cosine'] = 'linear', num_inference_steps: int = 1, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, similarity: Literal['dot', 'cosine'] = 'cosine', temperature: float = 0.05, n_denoiser_layers: int = 1, contrast_weight: float = 0.02, diffusion_weight: float = 0.1, mse_weight: float = 0.0, k_noise: int = 25, k_sample: int = 5, augment_ratio: float = 0.2, augment_count: Literal['length', 'max_len'] = 'length', positions: Literal['confident', 'random'] = 'confident', exclude_original: bool = False, augment_step: Literal['last', 'random'] = 'last', forward_process: Literal['convex', 'vp', 'gaussian'] = 'convex', share_encoder: bool = False) -> None: ...

class STOSA(_STOSA):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: Literal['transformer'] = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest'] = 'from_oldest', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: Literal['softmax', 'sampled_softmax', 'bpr'] = 'softmax', n_negatives: int | None = None, margin_weight: float = 0.005) -> None: ...

class VSAN(_VSAN):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 100, patience: int = 10, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 1, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', examples: Literal['per_user', 'windows', 'prefixes', 'newest_prefixes'] = 'per_user', by_length: bool = True, loss: str = 'softmax', n_negatives: int | None = None, negatives: Literal['uniform', 'popularity', 'in_batch', 'mixed'] = 'uniform', gbce_t: float = 0.75, n_targets: int = 1, n_generative_layers: int = 1, kl_weight: float = 0.01, kl_annealing_steps: int = 10000) -> None: ...

class ASReP(_ASReP):
    def __init__(self, *, n_items: int = 10, condition: Literal['causal', 'published'] = 'causal', n_condition: int = 1, max_history: int | None = 20, model: str = 'sasrec', model_settings: Mapping[str, object] = {}) -> None: ...

class Diff4Rec(_Diff4Rec):
    def __init__(self, *, learning_rate: float = 0.003, batch_size: int = 256, epochs: int = 60, patience: int = 10, num_train_timesteps: int = 100, beta_schedule: Literal['linear', 'quad', 'cosine', 'sqrt', 'sigmoid', 'exp', 'trunc_linear'] = 'cosine', latent_dim: int = 64, hidden_dim: int = 256, dropout: float = 0.5, likelihood: Literal['multinomial', 'bernoulli'] = 'multinomial', decode_from: Literal['z', 'z_0'] = 'z', kl_weight: float = 0.2, kl_annealing_steps: int = 500, noise_weight: float = 0.1, noise_moves_encoder: bool = True, prediction_type: Literal['epsilon', 'sample', 'v_prediction'] = 'epsilon', corruption: float = 0.25, num_inference_steps: int = 5, n_copies: int = 10, ratio: float = 0.2, pool: Literal['topk', 'softmax', 'threshold'] = 'topk', pool_size: int | None = None, exclude_history: bool = True, resample_pool: bool = False, reorder: Literal['full', 'local', 'none'] = 'full', reorder_window: int = 3, order: Literal['easy_first', 'hard_first'] = 'easy_first', curriculum: Literal['cumulative', 'one_pass', 'none'] = 'cumulative', stage_epochs: int = 1, aug_weight: float | None = None, copies_per_step: Literal['one', 'all'] = 'one') -> None: ...

class DiffuASR(_DiffuASR):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 512, epochs: int = 40, patience: int = 5, dim: int = 64, max_len: int = 50, dropout: float = 0.5, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, encoder: str = 'transformer', encoder_settings: Mapping[str, object] = {}, init_std: float = 0.02, n_layers: int = 2, n_heads: int = 2, attention_dropout: float = 0.0, position_encoding: Literal['from_oldest', 'from_newest', 'relative', 'alibi', 'rotary', 'none'] = 'relative', num_train_timesteps: int = 1000, beta_schedule: Literal['linear', 'quad', 'cosine', 'sqrt', 'sigmoid', 'exp', 'trunc_linear'] = 'linear', num_inference_steps: int = 50, n_items: int | None = None, condition: Literal['causal', 'published'] = 'causal', n_condition: int = 1, max_history: int | None = None, condition_on: Literal['train', 'train+valid'] = 'train', cond_pool: Literal['mean', 'sum'] = 'mean', cond_dropout: float = 0.1, min_condition: int = 3, item_embedding: Literal['frozen', 'init', 'scratch'] = 'frozen', centered: bool = True, channels: int | None = None, multipliers: tuple[int, ...] = (1, 2, 2, 2), guidance: Literal['classifier_free', 'classifier', 'none'] = 'classifier_free', guidance_scale: float = 1.0, guidance_in_training: bool = False, guidance_at: Literal['x_t', 'x_0'] = 'x_t', label: Literal['first', 'last'] = 'first', classifier_loss: Literal['softmax', 'bce'] = 'softmax', prediction_type: Literal['epsilon', 'sample', 'v_prediction'] = 'v_prediction', sampler: Literal['ddim', 'dpm_solver'] = 'ddim', eta: float = 0.0, pretrain_learning_rate: float = 0.001, pretrain_batch_size: int = 64, pretrain_epochs: int = 12, pretrain_patience: int = 3) -> None: ...

class MaskDiff(_MaskDiff):
    def __init__(self, *, learning_rate: float = 0.001, batch_size: int = 64, epochs: int = 60, patience: int = 6, dim: int = 64, max_len: int = 50, dropout: float = 0.3, weight_decay: float = 0.0, warmup_steps: int = 0, rate_decay: Literal['none', 'linear', 'cosine'] = 'none', max_norm: float | None = None, average_epochs: float = 3.0, n_items: int | Literal['auto'] = 10, condition: Literal['causal', 'published'] = 'causal', n_condition: int = 1, max_history: int | None = None, precision: float = 0.3, n_layers: int = 2, n_heads: int = 2, window: int = 5, num_inference_steps: int = 1, exclude_seen: bool = True) -> None: ...

class Random(_Random):
    def __init__(self, *, n_items: int = 10, condition: Literal['causal', 'published'] = 'causal', n_condition: int = 1, max_history: int | None = None) -> None: ...

class RandomSeq(_RandomSeq):
    def __init__(self, *, n_items: int = 10, condition: Literal['causal', 'published'] = 'causal', n_condition: int = 1, max_history: int | None = None) -> None: ...
