"""Features are what the blocks return; losses and penalty are what they are by hand; gradients stay in place."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.distill.engine.lora import Backbone
from fewstep.distill.engine.roles import Network
from fewstep.distill.methods.adversary import Gan, discriminator_adversary, r1, student_adversary
from fewstep.distill.methods.discriminator import (
    FeatureDiscriminator,
    Heads,
    OwnDiscriminator,
    tap_paths,
    tapped,
    tokens,
)
from fewstep.distill.mixtures import MLP
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.distill.methods.matching_toys import FLOW, MIXTURE, Judge, gaussian, has_gradient
from tests.distill.pipes import CALL, pipeline

PATHS = ("layers.0", "layers.2")


def points(n=16, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(MLP(2, width=8), FLOW)


def over(denoiser):
    return FeatureDiscriminator.over(denoiser, points(), 0.5, paths=PATHS)


class Block(nn.Module):
    """Two streams, as in transformers: returns (text, image)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, text, image):
        return self.a(text), self.b(image)


class Blocks(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(n)])

    def forward(self, x_t, t, cond=None):
        text, image = x_t[:, :1], x_t[:, 1:]
        for block in self.blocks:
            text, image = block(text, image)
        return torch.cat([text, image], dim=1)


@pytest.mark.parametrize(
    ("count", "places"), [(1, [7]), (2, [3, 7]), (3, [1, 4, 7]), (4, [1, 3, 5, 7]), (20, range(8))]
)
def test_taps_are_spread_over_the_blocks(count, places):
    assert tap_paths(Blocks(8), count) == tuple(f"blocks.{i}" for i in places)


def test_a_network_without_blocks_needs_names():
    with pytest.raises(InputError, match="MLP has no repeated blocks"):
        tap_paths(network().module)
    with pytest.raises(InputError, match="MLP has no part 'blocks'"):
        tapped(network(), ["blocks"], points(), 0.5)
    with pytest.raises(InputError, match="must be at least 1"):
        tap_paths(Blocks(2), 0)


def test_features_are_what_the_modules_return_and_the_network_is_left_as_it_was():
    denoiser, x_t = network(), points()
    seen = {}
    for path in PATHS:
        denoiser.module.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.update({path: output})
        )
    prediction, features = tapped(denoiser, PATHS, x_t, 0.5)
    assert torch.equal(prediction, denoiser(x_t, 0.5))
    assert all(torch.equal(feature, seen[path]) for path, feature in zip(PATHS, features, strict=True))
    assert all("forward" not in module.__dict__ for module in denoiser.module.modules())


def test_an_adapter_gives_the_features_of_its_role():
    plain, x_t = network(), points()
    adapter = Backbone(plain.module, rank=2).adapter()
    role = plain.with_module(adapter)
    for path in ("layers.0", "layers.2"):
        torch.nn.init.normal_(adapter.up[path.replace(".", "/")])
    assert not torch.equal(tapped(role, PATHS, x_t, 0.5)[1][1], tapped(plain, PATHS, x_t, 0.5)[1][1])
    prediction, _ = tapped(role, PATHS, x_t, 0.5)
    assert torch.equal(prediction, role(x_t, 0.5))
    judged = over(role).features(x_t, torch.full((16,), 0.5), None)
    torch.stack([one.sum() for one in judged]).sum().backward()
    assert has_gradient(adapter)


def test_the_larger_stream_of_an_unknown_block_is_taken():
    x_t = torch.randn(2, 6, 4)
    _, (feature,) = tapped(Network(Blocks(2), FLOW), ["blocks.1"], x_t, 0.5)
    assert feature.shape == (2, 5, 4)


def test_a_part_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, x_t, t, cond=None):
            return self.part(self.part(x_t))

    with pytest.raises(InputError, match="'part' of Twice ran 2 times"):
        tapped(Network(Twice(), FLOW), ["part"], points(), 0.5)


def test_a_traced_pipeline_gives_its_image_stream_without_guidance():
    traced = trace(pipeline(), **{**CALL, "num_inference_steps": 4, "prompt": ["a red ring", "a blue cross"]})
    made = FeatureDiscriminator.over(traced, traced.noise, traced.times[0], traced.cond, width=8)
    assert made.paths == ("transformer_blocks.0", "single_transformer_blocks.0")
    t = torch.tensor([0.9, 0.3])
    features = made.features(traced.noise, t, traced.cond)
    batch, image_tokens = traced.noise.shape[:2]
    assert [feature.shape for feature in features] == [(batch, image_tokens, 32)] * 2
    logits = made.logits(features, t, traced.cond)
    assert logits.shape == (batch, 2 * image_tokens)
    alone = traced.with_module(traced.module)
    assert torch.equal(tapped(alone, made.paths, traced.noise, t, traced.cond)[1][1], features[1])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((2, 5), (2, 1, 5)), ((2, 7, 5), (2, 7, 5)), ((2, 5, 3, 4), (2, 12, 5)), ((2, 5, 2, 3, 4), (2, 24, 5))],
)
def test_tokens_have_their_channels_last(shape, wanted):
    feature = torch.randn(shape)
    found = tokens(feature)
    assert found.shape == wanted
    if len(shape) == 4:
        assert torch.equal(found[1, 5], feature[1, :, 1, 1])


def test_heads_are_the_same_for_the_same_seed_and_leave_the_random_state():
    before = torch.get_rng_state()
    a, b = over(network()), over(network())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.heads.parameters(), b.heads.parameters(), strict=True))


def test_losses_by_hand():
    real, made = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.0]])
    assert float(discriminator_adversary("hinge", real, made)) == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert float(student_adversary("hinge", made)) == pytest.approx(1.5)
    soft = lambda x: math.log1p(math.exp(x))  # noqa: E731
    wanted = (soft(-2) + soft(-0.5)) / 2 + (soft(-3) + soft(0)) / 2
    assert float(discriminator_adversary("softplus", real, made)) == pytest.approx(wanted)
    assert float(student_adversary("softplus", made)) == pytest.approx((soft(3) + soft(0)) / 2)


def test_softplus_is_least_at_the_log_ratio_of_densities():
    p, q = gaussian((0.5, 0.0), 1.0), gaussian((-0.5, 0.0), 1.0)
    draw = torch.Generator().manual_seed(0)
    real, made, scale = p.sample(50000, draw), q.sample(50000, draw), torch.tensor(1.0, requires_grad=True)
    ratio = lambda x: scale * (p.log_prob(x) - q.log_prob(x))[:, None]  # noqa: E731
    loss = discriminator_adversary("softplus", ratio(real), ratio(made))
    (slope,) = torch.autograd.grad(loss, scale)
    assert abs(float(slope)) < 5e-3
    for other in (0.8, 1.2):
        with torch.no_grad():
            scale.fill_(other)
            assert discriminator_adversary("softplus", ratio(real), ratio(made)) > loss


def test_r1_is_the_squared_slope_of_each_logit():
    """Of logits w·f it is |w|², whatever their number; and it trains the weights."""
    linear = nn.Linear(3, 1, bias=False)
    for features in ([torch.randn(5, 7, 3)], [torch.randn(5, 7, 3), torch.randn(5, 2, 3)]):
        features = [one.requires_grad_() for one in features]
        logits = torch.cat([linear(one)[..., 0] for one in features], dim=1)
        found = r1(logits, features)
        assert float(found.detach()) == pytest.approx(float(linear.weight.detach().square().sum()), rel=1e-5)
    found.backward()
    torch.testing.assert_close(linear.weight.grad, 2 * linear.weight.detach())


def test_a_judgement_reaches_the_sample_and_no_weights():
    backbone = network()
    for discriminator in (over(backbone), OwnDiscriminator(Judge())):
        gan, x_t = Gan(discriminator), points().requires_grad_()
        gan.student_loss(gan.judge(x_t, torch.full((16,), 0.5), None)).backward()
        assert x_t.grad.abs().sum() > 0
        assert not has_gradient(gan.module)
    assert not has_gradient(backbone.module)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_comparing_trains_the_heads_and_by_wish_the_critic(penalty):
    t, critic = torch.full((16,), 0.5), network()
    gan = Gan(over(critic), critic_weight=0.5, r1=penalty)
    compared = gan.compare(points(seed=1), points(seed=2), t, None)
    compared.discriminator_loss().backward()
    assert has_gradient(gan.module)
    assert not has_gradient(critic.module)
    gan.module.zero_grad()
    compared.critic_loss().backward()
    assert has_gradient(critic.module)
    assert not has_gradient(gan.module)
    assert not replace(gan, critic_weight=0.0).compare(points(), points(), t, None).real[0].requires_grad


def test_heads_learn_to_tell_two_distributions_apart():
    backbone, t = network(), torch.full((256,), 0.1)
    gan = Gan(over(backbone), r1=1e-3)
    optimizer, draw = torch.optim.Adam(gan.module.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        real, made = MIXTURE.sample(256, draw), torch.randn(256, 2, generator=draw)
        optimizer.zero_grad()
        losses.append(gan.compare(real, made, t, None).discriminator_loss())
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 1.3  # 2·log 2 is no idea
    assert losses[-1] < 1.15


def test_heads_want_a_feature_each():
    with pytest.raises(ValueError, match="shorter"):
        Heads([4, 4])([torch.randn(2, 4)])


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 0), ("critic_weight", -1), ("kind", "wasserstein"), ("r1", -1)]
)
def test_bad_values_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of the discriminator must be"):
        Gan(OwnDiscriminator(Judge()), **{field: value})
