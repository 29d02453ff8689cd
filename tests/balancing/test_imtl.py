# SPDX-License-Identifier: Apache-2.0
import torch

from tests.balancing.small_problem import balancer, random_gradients, weights


def test_equal_projections_and_the_closed_form():
    gradients = random_gradients(4, 6)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    found = weights(balancer("imtl", "abcd", loss_scale=False), gradients)
    projections = units @ (found @ gradients)
    torch.testing.assert_close(projections, projections.mean().expand(4))
    d, u = gradients[0] - gradients[1:], units[0] - units[1:]
    rest = gradients[0] @ u.T @ (d @ u.T).inverse()
    torch.testing.assert_close(found, torch.cat([1 - rest.sum().view(1), rest]))


def test_the_scale_of_a_loss_is_learned_to_its_inverse():
    method = balancer("imtl", "ab", lr=0.5)
    losses = torch.tensor([0.5, 4.0])
    for _ in range(60):
        weights(method, random_gradients(2), losses)
    torch.testing.assert_close(method.scale.exp(), 1 / losses.double())


def test_scaled_losses_do_not_see_the_scale_of_a_loss():
    gradients, factor = random_gradients(2), torch.tensor([[10.0], [1.0]]).double()
    method, plain = balancer("imtl", "ab"), balancer("imtl", "ab")
    method.scale[0] = -torch.tensor(10.0).log()
    found = weights(method, factor * gradients) @ (factor * gradients)
    torch.testing.assert_close(found, weights(plain, gradients) @ gradients)
