"""A stage's state is plain full tensors, also when FSDP (version 2) shards networks and optimisers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from osdface_core.errors import CheckpointError
from osdface_trainer import snapshot
from tests import processes


def gather_and_deal_out() -> None:
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))

    def build(shard: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.SiLU(), torch.nn.Linear(5, 3))
        if shard:
            fully_shard(net, mesh=mesh)
        return net, torch.optim.Adam(net.parameters(), lr=0.1)

    def learn(net: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
        net(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    plain, plain_adam = build(False)
    shards, shards_adam = build(True)
    for _ in range(2):
        learn(plain, plain_adam, inputs)
        learn(shards, shards_adam, inputs[rank::2])  # the mean over processes is the mean over the batch
    state = {"net": snapshot.module_state(shards), "adam": snapshot._full(shards_adam.state_dict())}
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state["net"][name], value, rtol=1e-4, atol=1e-5)
    fresh, fresh_adam = build(True)
    snapshot.load_module(fresh, state["net"], "net")
    snapshot._load_optimizer(fresh_adam, state["adam"])
    learn(plain, plain_adam, inputs)
    learn(fresh, fresh_adam, inputs[rank::2])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(snapshot.full_state(fresh)[name], value, rtol=1e-4, atol=1e-5)
    print("same")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_sharded_state_is_gathered_and_dealt_out_again(tmp_path: Path) -> None:
    said = processes.run(gather_and_deal_out, tmp_path, processes=2)
    assert all("same" in words for words in said)


def test_frozen_parameters_are_not_stored_and_not_asked_for() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net[0].weight.requires_grad_(False)
    state = snapshot.module_state(net)
    assert "0.weight" not in state and {"0.bias", "1.running_mean", "1.num_batches_tracked"} <= state.keys()
    snapshot.load_module(net, state, "net")
    with pytest.raises(CheckpointError, match=r"has no net\.0\.bias"):
        snapshot.load_module(net, {k: v for k, v in state.items() if k != "0.bias"}, "net")
    with pytest.raises(CheckpointError, match=r"net\.0\.bias does not fit"):
        snapshot.load_module(net, state | {"0.bias": torch.zeros(3)}, "net")
