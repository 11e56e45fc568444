"""The diffusion core: schedules, samplers, guidance and noise for vectors of any meaning.

Nothing here knows of items, users or data. A model trains a network on `NoiseSchedule.add_noise`,
turns it into a `Denoise` function, and hands that to a sampler.
"""

from diffuserec.models.diffusion.guidance import (
    ConditionalNetwork,
    LogProb,
    classifier_free_network,
    classifier_guidance,
)
from diffuserec.models.diffusion.masking import draw_masks, draw_masks_alike
from diffuserec.models.diffusion.noise import KeyedNoise, NoiseSource, noise_from, row_keys
from diffuserec.models.diffusion.rounding import nearest_rows
from diffuserec.models.diffusion.samplers import (
    Denoise,
    DPMSolver,
    Draw,
    Network,
    Sampler,
    denoise_with,
    sampling_by,
    timesteps,
)
from diffuserec.models.diffusion.schedule import SCHEDULES, NoiseSchedule, PredictionType
from diffuserec.models.diffusion.steps import ImportanceSteps, antithetic, uniform

__all__ = [
    "SCHEDULES",
    "ConditionalNetwork",
    "DPMSolver",
    "Denoise",
    "Draw",
    "ImportanceSteps",
    "KeyedNoise",
    "LogProb",
    "Network",
    "NoiseSchedule",
    "NoiseSource",
    "PredictionType",
    "Sampler",
    "antithetic",
    "classifier_free_network",
    "classifier_guidance",
    "denoise_with",
    "draw_masks",
    "draw_masks_alike",
    "nearest_rows",
    "noise_from",
    "row_keys",
    "sampling_by",
    "timesteps",
    "uniform",
]
