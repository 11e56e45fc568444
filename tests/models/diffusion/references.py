"""Formulas of the papers that the diffusion core is compared with."""

import torch


def posterior(schedule, x_0, x_t, t):
    """Mean and variance of x_{t-1} given x_t and x_0 (Ho, Jain & Abbeel 2020, eq. 6-7)."""

    def at(table):
        return table[t].view(-1, *(1,) * (x_0.ndim - 1)).to(x_0)

    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bars[:-1]])
    left = 1 - schedule.alpha_bars
    of_x_0 = before.sqrt() * schedule.betas / left
    of_x_t = (1 - schedule.betas).sqrt() * (1 - before) / left
    variance = schedule.betas * (1 - before) / left
    return at(of_x_0) * x_0 + at(of_x_t) * x_t, at(variance).expand_as(x_0)


def noise_between(schedule, x_0, x_t, t):
    """The noise that leads from x_0 to x_t."""
    alpha_bar = schedule.alpha_bars[t].view(-1, *(1,) * (x_0.ndim - 1)).to(x_0)
    return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


def classifier_free(conditional, unconditional, scale):
    """The guided function of two, by its definition (Ho & Salimans 2022, eq. 6)."""
    return lambda x_t, t: (1 + scale) * conditional(x_t, t) - scale * unconditional(x_t, t)
