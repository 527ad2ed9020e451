"Training at scale: rows that draw their own random numbers, several processes, runs that survive, and plans."
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from train_ranks import main as train_here
from train_ranks import network

from mfm_app import training
from mfm_app.conditioning import Adaptor, Conditioned
from mfm_app.core import Condition, InputError, part_rows, refusal, row_keys, uniforms
from mfm_app.data import Batches, vocabulary
from mfm_app.flow import Design
from mfm_app.model import mit, parameter_count
from mfm_app.simulator import synthetic_cells
from mfm_app.training import (RowDropout, Scale, SharedError, by_row, check_agreement, draw_rows, forward_flops, keyed,
                              plan_training, prepare, previous, read_state, start, tensorboard, together, train)

cells = synthetic_cells(8, size=16)
batches = Batches(cells, vocabulary(cells), size=8)
design = Design(prediction="image")
quick = dict(design=design, warmup=2, log_every=3, scale=Scale("float32"))
script = Path(__file__).with_name("train_ranks.py")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Sums are taken in the same order as in the processes that are started here."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(history): return [entry[:2] for entry in history]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(processes=1, **settings):
    "Start `train_ranks.py` so many times, as torchrun does."
    root, shared = script.parent.parent, dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    def one(rank):
        own = dict(shared, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes)) if processes > 1 else {}
        env = os.environ | own | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(root))
        return subprocess.Popen([sys.executable, script, json.dumps(settings)], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return [one(rank) for rank in range(processes)]


def ended(started):
    "The exit codes of processes, and what they said last."
    said = [process.communicate(timeout=120)[1].strip().splitlines()[-1:] for process in started]
    return [process.returncode for process in started], [lines[0] if lines else "" for lines in said]


def until(there):
    for _ in range(1200):
        if there(): return
        time.sleep(0.05)
    raise AssertionError("nothing happened for a minute")


# Random numbers of a row

@given(st.integers(0, 2**40), st.integers(-10, 2**40), st.integers(1, 9))
def test_a_row_draws_the_same_whatever_stands_beside_it(seed, step, n):
    keys = row_keys(seed, step, n)
    assert len(keys.unique()) == n and (keys >= 0).all()
    assert torch.equal(torch.cat([uniforms(key[None], 5) for key in keys]), uniforms(keys, 5))


def test_the_numbers_of_rows_are_uniform_and_unrelated():
    drawn = uniforms(row_keys(0, 0, 64), 20_000)
    assert drawn.min() >= 0 and drawn.max() < 1
    share = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (share - 0.05).abs().max() < 0.001
    related = torch.corrcoef(torch.cat([drawn, drawn.roll(1, 1)])).fill_diagonal_(0).abs().max()
    assert related < 6 / 20_000**0.5
    seeds, steps = (torch.cat([uniforms(row_keys(*pair, 1), 20_000) for pair in pairs]) for pairs in
                    (((0, 0), (1, 0), (2, 0)), ((0, 0), (0, 1), (0, 2))))
    assert max(torch.corrcoef(x).fill_diagonal_(0).abs().max() for x in (seeds, steps)) < 5 / 20_000**0.5


@pytest.mark.parametrize("coupling", ["independent", "ot"])
@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_are_the_batch(coupling, parts):
    run, ours = start(network()), Design(coupling=coupling, prediction="image")
    whole, *pieces = (draw_rows(run, batches, ours, None, *part) for part in
                      ((0, 1), *((i, parts) for i in range(parts))))
    for name in ("x1", "t", "x0", "keys"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name)), name
    assert torch.equal(torch.cat([piece.condition.y for piece in pieces]), whole.condition.y)
    assert refusal(part_rows, 8, 0, 3) == "A batch of 8 images is not a multiple of the 3 parts that share it."


def test_dropout_and_dropped_labels_belong_to_a_row():
    net = network().train()
    by_row(net)
    assert not any(type(m) is nn.Dropout and m.p for m in net.modules())
    keys, x, t = row_keys(0, 0, 8), torch.randn(8, 3, 16, 16), torch.rand(8)
    condition = Condition(y=torch.zeros(8, dtype=torch.int64))
    nn.init.normal_(net.backbone.out.linear.weight)
    with keyed(net, keys): whole = net(x, t, condition)
    with keyed(net, keys[4:]): half = net(x[4:], t[4:], condition[slice(4, 8)])
    torch.testing.assert_close(whole[4:], half)
    dropout, ones = RowDropout(0.3, 1), torch.ones(4, 50_000)
    with keyed(dropout, keys[:4]): kept = dropout(ones)
    assert kept.mean() == pytest.approx(1, abs=0.01) and torch.equal(dropout.eval()(ones), ones)


# One batch, computed in pieces or by several processes

def curve(**scale):
    run = train(start(network()), batches, 9, **quick | dict(scale=Scale("float32", **scale)))
    return [loss for _, loss, _ in run.history]


def test_pieces_and_recomputed_blocks_give_the_curve_of_the_whole():
    assert curve(accumulate=4, checkpointing=True) == pytest.approx(curve(), abs=1e-4)


def test_recomputing_alone_changes_no_bit():
    assert curve(checkpointing=True) == curve()


@pytest.mark.slow
def test_a_compiled_network_gives_the_curve():
    assert curve(compile=True) == pytest.approx(curve(), abs=1e-3)


def one_and_several(tmp_path, processes, **settings):
    "The curve of one process, and that of several."
    files = [tmp_path / f"{n}.json" for n in (1, processes)]
    started = launch(processes, **settings, out=str(files[1]))
    train_here(**settings | dict(fsdp=False, out=str(files[0])))
    assert set(ended(started)[0]) == {0}
    return [[loss for _, loss, _ in json.loads(file.read_text())] for file in files]


def test_two_processes_give_the_curve_of_one(tmp_path):
    alone, two = one_and_several(tmp_path, 2, steps=9)
    assert two == pytest.approx(alone, abs=1e-4) and len(alone) == 3


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    dict(), dict(coupling="ot"), dict(optimiser="adam", fused=True, accumulate=2, checkpointing=True),
    dict(optimiser="adam", fsdp=True), dict(optimiser="adam", fsdp=True, checkpointing=True)])
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_curve_of_one_in_every_way(tmp_path, processes, settings):
    alone, several = one_and_several(tmp_path, processes, steps=12, **settings)
    assert several == pytest.approx(alone, abs=1e-4) and len(alone) == 4


@pytest.mark.slow
def test_a_sharded_run_is_resumed_by_one_process(tmp_path):
    settings = dict(steps=12, optimiser="adam", checkpoint=str(tmp_path / "state.pt"), save_every=2)
    started = launch(2, **settings, fsdp=True, pause=0.3)
    until(lambda: (tmp_path / "state.pt").is_file())
    for process in started: process.kill()
    ended(started)
    assert 0 < read_state(tmp_path / "state.pt")["step"] < 12
    train_here(**settings, out=str(tmp_path / "resumed.json"))
    train_here(steps=12, optimiser="adam", out=str(tmp_path / "alone.json"))
    alone, resumed = ([loss for _, loss, _ in json.loads((tmp_path / f"{name}.json").read_text())]
                      for name in ("alone", "resumed"))
    assert resumed == pytest.approx(alone, abs=1e-4)


def test_a_setting_that_does_not_exist_is_refused():
    assert "Unknown precision 'int8'" in refusal(Scale, "int8")
    assert "Accumulated pieces must be a whole number" in refusal(Scale.read, ["accumulate=none"])
    assert "Unknown setting of scale 'shards'" in refusal(Scale.read, ["shards"])
    assert refusal(Scale.read, ["fsdp=maybe"]) == "fsdp is yes or no, not 'maybe'."
    assert Scale.read(["accumulate=4", "fsdp", "compile=no"]) == Scale(accumulate=4, fsdp=True)
    run = start(network())
    assert "is not a multiple of the 3 parts" in refusal(train, run, batches, 3, scale=Scale(accumulate=3))
    assert "start the command by torchrun" in refusal(train, run, batches, 3, scale=Scale(fsdp=True))
    assert run.step == 0


# Processes that disagree

def test_processes_that_were_given_different_things_are_named(monkeypatch):
    given = {"data": "a", "network": "S/8", "batch": 64}
    monkeypatch.setattr(training, "gather_all", lambda value: [value, value, value | {"network": "B/4"}])
    with pytest.raises(SharedError, match="process 2 and process 0 differ in the network"): check_agreement(given)
    monkeypatch.setattr(training, "gather_all", lambda value: [value] * 3)
    check_agreement(given)


def test_an_input_that_one_process_refuses_stops_all_of_them(monkeypatch):
    def fail(): raise InputError("There is no data folder 'cells'.")
    with pytest.raises(InputError, match="no data folder"): together(fail)
    monkeypatch.setattr(training, "gather_all", lambda message: ["", "There is no data folder 'cells'."])
    with pytest.raises(SharedError, match="Process 1: There is no data folder 'cells'."): together(lambda: 1)


@pytest.mark.slow
def test_two_processes_with_different_seeds_stop_before_the_first_step(tmp_path):
    codes, said = ended(launch(2, steps=9, disagree="seed", out=str(tmp_path / "a")))
    assert codes == [1, 1] and not (tmp_path / "a.began").exists()
    assert all("process 1 and process 0 differ in the seed" in line for line in said)


# Runs that survive

def survives(tmp_path, kills, steps, seed):
    "The losses of a run that is killed at random moments, and those of one that is not."
    settings, chance = dict(steps=steps, checkpoint=str(tmp_path / "state.pt"), save_every=4), random.Random(seed)
    reached = []
    for i in range(kills):
        began = tmp_path / f"{i}.began"
        (process,) = launch(1, **settings, pause=0.02, out=str(began.with_suffix("")))
        until(lambda: (began if reached or kills > 1 else tmp_path / "state.pt").exists() or process.poll() is not None)
        time.sleep(chance.uniform(0.1, 3 if kills > 1 else 0.8))
        process.kill()
        assert ended([process])[0] == [-signal.SIGKILL], "it ended before it was killed"
        if (tmp_path / "state.pt").is_file(): reached.append(read_state(tmp_path / "state.pt")["step"])
    train_here(**settings, out=str(tmp_path / "killed"))
    train_here(steps, out=str(tmp_path / "whole"))
    assert reached and 0 < max(reached) < steps
    return [losses(json.loads((tmp_path / name).read_text())) for name in ("killed", "whole")]


def test_a_run_that_was_killed_has_the_losses_of_one_that_was_not(tmp_path):
    killed, whole = survives(tmp_path, 1, 60, 0)
    assert killed == whole and len(whole) == 20


@pytest.mark.slow
def test_ten_kills_change_no_bit_of_the_losses(tmp_path):
    killed, whole = survives(tmp_path, 10, 600, random.randrange(10**9))
    assert killed == whole and len(whole) == 200


def test_a_run_stopped_between_two_entries_of_the_history_keeps_the_losses_between(tmp_path):
    path = tmp_path / "state.pt"
    def stop(run):
        if run.step == 4: raise KeyboardInterrupt
    whole = train(start(network()), batches, 9, **quick)
    with pytest.raises(KeyboardInterrupt): train(start(network()), batches, 9, path, every={4: stop}, **quick)
    resumed = start(network(), path)
    assert resumed.step == 4 and len(resumed.recent) == 1
    assert losses(train(resumed, batches, 9, path, **quick).history) == losses(whole.history)
    assert all(map(torch.equal, resumed.net.parameters(), whole.net.parameters()))


class Spoilt:
    "Batches of which some have pixels that are no numbers."
    def __init__(self, *numbers): self.numbers, self.size = numbers, batches.size
    def __call__(self, number, *part):
        x1, condition = batches(number, *part)
        return (x1 * math.nan if number in self.numbers else x1), condition


def test_a_loss_that_is_no_number_stops_the_run_which_then_passes_over_the_batch(tmp_path):
    path = tmp_path / "state.pt"
    run = start(network())
    message = refusal(train, run, Spoilt(3, 4), 9, path, **quick)
    assert message.startswith("Stopped at step 4, for the loss is not a finite number; no weight was changed, and the "
                              "same command goes on")
    assert all(p.isfinite().all() for p in [*run.net.parameters(), *run.ema.parameters()])
    assert "Stopped at step 4" in refusal(train, start(network(), path), Spoilt(3, 4), 9, path, **quick)
    seen = []
    def recording(number):
        seen.append(number)
        return Spoilt(3, 4)(number)
    run = train(start(network(), path), recording, 9, path, **quick)
    assert run.step == 9 and seen == [5, 6, 7, 8, 9, 10] and run.left_out == 2


def test_a_gradient_that_is_no_number_changes_no_weight(monkeypatch, tmp_path):
    run, before = start(network()), [p.clone() for p in network().parameters()]
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    assert "the gradient is not a finite number" in refusal(train, run, batches, 9, tmp_path / "state.pt", **quick)
    assert all(map(torch.equal, run.net.parameters(), before)) and run.step == 0


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_ends_a_run_that_the_same_command_goes_on_with(tmp_path):
    path = tmp_path / "state.pt"
    def fill(run):
        if run.step == 6: (tmp_path / "state.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="the disk may be full"):
        train(start(network()), batches, 12, path, every={3: fill}, **quick)
    assert read_state(path)["step"] == 6
    resumed = train(start(network(), path), batches, 12, path, **quick)
    assert losses(resumed.history) == losses(train(start(network()), batches, 12, **quick).history)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_short_gives_way_to_the_one_before(tmp_path, left):
    path = tmp_path / "state.pt"
    whole = train(start(network()), batches, 9, path, every={3: lambda run: None}, **quick)
    path.write_bytes(path.read_bytes()[:int(left * path.stat().st_size)])
    resumed = start(network(), path)
    assert resumed.step == 6 and resumed.note == "state.pt is damaged; the run goes on from the one before, of step 6."
    assert losses(train(resumed, batches, 9, path, **quick).history) == losses(whole.history)
    path.write_bytes(b"")
    previous(path).write_bytes(b"")
    assert "is not a checkpoint of a training run, or is damaged" in refusal(start, network(), path)


def test_a_run_told_to_stop_saves_and_says_so(tmp_path):
    path = tmp_path / "state.pt"
    before = signal.getsignal(signal.SIGTERM)
    told = lambda run: os.kill(os.getpid(), signal.SIGTERM)
    message = refusal(train, start(network()), batches, 9, path, every={3: told}, **quick)
    assert message == "Stopped after step 4, as the system asked; the same command goes on from the last checkpoint."
    assert read_state(path)["step"] == 4 and signal.getsignal(signal.SIGTERM) == before


def test_a_lost_process_ends_the_others_and_one_goes_on(tmp_path):
    settings = dict(steps=30, checkpoint=str(tmp_path / "state.pt"), save_every=3)
    first, second = launch(2, **settings, pause=0.1)
    until(lambda: (tmp_path / "state.pt").is_file())
    second.kill()
    codes, said = ended([first, second])
    assert codes == [1, -signal.SIGKILL]
    assert "another process of this run was lost; the same command goes on from the last checkpoint." in said[0]
    resumed = start(network(), tmp_path / "state.pt")
    assert 0 < resumed.step < 30
    assert train(resumed, batches, 30, tmp_path / "state.pt", **quick).step == 30


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    train(start(network(), seed=1, about=dict(perturbations=["a", "b"])), batches, 1, path, **quick)
    assert "is of a run with seed 1, not 0" in refusal(start, network(), path)
    message = refusal(start, network(), path, seed=1, about=dict(perturbations=["a", "c"]))
    assert "is of other perturbations than these data have" in message
    assert start(network(), path, seed=1, lr=5e-4).optimisers[0].param_groups[0]["initial_lr"] == 5e-4


def test_the_history_is_written_for_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = train(start(network()), batches, 6, log=tensorboard(tmp_path), **quick)
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    entries = [[e.step, pytest.approx(e.value)] for e in written.Scalars("loss")]
    assert losses(run.history) == entries and len(entries) == 2


# Plans

def build(patch=8):
    backbone = mit(f"nano/{patch}", image_size=16)
    return Conditioned(backbone, Adaptor(48, 3, 2, 1), predicts="image")


def test_a_plan_counts_what_there_is_and_scales_as_it_should():
    def plan(gpus=1, batch=8, steps=10, **scale):
        return plan_training(build, gpus, batch, steps, 1e9, 0.5, Scale("float32", **scale))
    one, twice = plan(), plan(batch=16)
    assert one.parameters == parameter_count(build()) and one.resident == 16 * one.parameters
    assert twice.flops == 2 * one.flops and twice.memory > one.memory and twice.disk == one.disk
    assert plan(gpus=2).hours == one.hours / 2 and plan(steps=20).hours == 2 * one.hours
    assert plan(checkpointing=True).flops > one.flops and plan(gpus=4, fsdp=True).resident == one.resident / 4
    assert one.flops == 8 * 3 * forward_flops(build)[0]
    assert "is not a multiple of the 3 parts" in refusal(plan, gpus=3)
