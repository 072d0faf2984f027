"""What the tests of distribution matching share: a mixture of two, a small network fitted to it, discriminators."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from fewstep.diffusion.analytic import GaussianMixture
from fewstep.diffusion.samplers import euler
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Distiller, Settings, train
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.adversary import Gan
from fewstep.distill.methods.backward import Rollout
from fewstep.distill.methods.discriminator import FeatureDiscriminator, OwnDiscriminator
from fewstep.distill.mixtures import Exact, MixtureTask, energy_distance

FLOW = Schedule.flow()
MIXTURE = GaussianMixture(torch.tensor([[1.5, 0.0], [-1.0, 1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.5, 0.5]))
TASK = MixtureTask(MIXTURE, labelled=False)
SCHEDULES = (
    Schedule.flow(),
    Schedule.vp(torch.linspace(0.999, 0.01, 50), "eps"),
    Schedule.vp(torch.linspace(0.999, 0.01, 50), "v"),
    Schedule.edm("x0"),
)
FEATURES = ("layers.0", "layers.2")
SETTINGS = Settings(80, rate=3e-3, warmup=5, ema=0.93)
ONE = Rollout((1.0, 0.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(mean: tuple[float, float], std: float) -> GaussianMixture:
    return GaussianMixture(torch.tensor([mean]), torch.tensor([std]), torch.ones(1))


def exact(mixture: GaussianMixture = MIXTURE, schedule: Schedule = FLOW) -> Network:
    return Network(Exact(mixture, schedule), schedule)


class Shifted(nn.Module):
    """A one-step student whose samples at t = 1 are N(mean, std²): x0 = mean + std·noise, with `mean` to be trained."""

    def __init__(self, mean: tuple[float, float], std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), std

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x_t - (self.mean + self.std * x_t)


@cache
def _fitted() -> nn.Module:
    net, velocity, draw = TASK.student().module, MIXTURE.denoiser(FLOW), generator()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 400)
        t = torch.rand(256, generator=draw)
        x_t = FLOW.add_noise(MIXTURE.sample(256, draw), torch.randn(256, 2, generator=draw), t)
        optimizer.zero_grad()
        (net(x_t, t) - velocity(x_t, t)).square().mean().backward()
        optimizer.step()
    return net.requires_grad_(False)


def fitted() -> Network:
    """A copy to be trained of the network that was fitted to the mixture's velocity."""
    return Network(copy.deepcopy(_fitted()).requires_grad_(True), FLOW)


def unlike() -> Network:
    """An untrained network: not the fitted one, or the scores would agree and there would be nothing to learn."""
    return TASK.student(seed=1)


def batch(size: int = 128, seed: int = 0) -> PathBatch:
    """Noise and exact samples of the mixture, which do not belong together."""
    draw = generator(seed)
    x0 = MIXTURE.sample(size, draw)
    return PathBatch(torch.stack([torch.randn(x0.shape, generator=draw), x0], dim=1), (1.0, 0.0), None)


def one_step(denoiser: Network) -> float:
    """The distance of one Euler step's samples to the mixture; 0 for the mixture's own, about ±0.003."""
    return energy_distance(euler(denoiser, TASK.noise(1000), [1.0, 0.0]), MIXTURE)


def trained(method: Distiller[PathBatch], student: Network, folder: object, settings: Settings = SETTINGS) -> Network:
    """The student's average after training."""
    done = train(method, lambda step: batch(seed=step), folder, settings, show=False)
    return student.with_module(done.averages["student"])


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


class Judge(nn.Module):
    """A small discriminator of (x_t, t)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.layers(torch.cat([x_t, t[:, None]], dim=1))


def own_gan(**values: object) -> Gan:
    return Gan(OwnDiscriminator(Judge()), **{"weight": 1e-2, **values})


def feature_gan(denoiser: Network, **values: object) -> Gan:
    discriminator = FeatureDiscriminator.over(denoiser, torch.zeros(2, 2), 0.5, paths=FEATURES)
    return Gan(discriminator, **{"weight": 1e-2, **values})


def run_updates(method: Distiller[PathBatch]) -> list[str]:
    """The names of one iteration's updates; each loss must train its own module, and no other, nor a frozen one."""
    names = []
    for update in method.updates(batch(16), generator()):
        names.append(update.name)
        update.loss.backward()
        modules = {**method.modules, **method.frozen}
        assert modules[update.name] is update.module
        assert [name for name, module in modules.items() if has_gradient(module)] == [update.name]
        for module in method.modules.values():
            module.zero_grad()
    return names
