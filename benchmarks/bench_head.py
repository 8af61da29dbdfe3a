"""The head's step (forward, backward, update of the class centers) against the reference's algorithm and F.cross_entropy.

    python benchmarks/bench_head.py [--quick] [--json]

The limit is four matmuls (logits, logits again, gradient of x, gradient of the class centers) in the same pieces as ours,
and nothing else. The reference (insightface's PartialFC v2, after its description: logits and their softmax held whole,
dense gradient, all class centers in the optimizer, a random top-k where it samples) is written here. On a CPU everything
runs under glibc's default allocator and under one that keeps its memory (what run.sh sets): page faults are much of the
peers' time.
"""
import concurrent.futures
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from side_by_side import ONE_ALLOCATOR, Report, medians, peak_memory, run_cli, synchronize, under_each_allocator
from torch import nn

from engine.distributed import shard_range
from engine.random import normal
from kernels import margin_softmax
from losses import CosFace
from partial_fc import PartialFC, margin_softmax_reference

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
D = 256


class Reference(nn.Module):
    """What insightface's PartialFC v2 does on one rank: CosFace, s = 64, m = 0.4, SGD momentum on all class centers."""

    def __init__(self, num_classes: int, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, D, device=DEVICE) * 0.01)
        self.sampled = int(rate * num_classes)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9)

    def step(self, x, labels):
        weight, column = self.weight, labels
        if self.sampled < len(weight):
            order = torch.rand(len(weight), device=DEVICE)
            order[labels.unique()] = 2.0
            index = order.topk(self.sampled).indices.sort().values
            weight, column = weight[index], torch.searchsorted(index, labels)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            cosine = F.linear(F.normalize(x), F.normalize(weight))
        loss = self.loss(cosine.float().clamp(-1, 1), column)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def loss(self, cosine, column):
        return _Softmax.apply(_with_margin(cosine, column), column)


def _with_margin(cosine, column):
    """CosFace in place, on the targets alone, as the reference has it."""
    cosine[torch.arange(len(column), device=cosine.device), column] -= 0.4
    return cosine * 64.0


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, column):
        p = logits - logits.amax(1, keepdim=True)
        p.exp_()
        p.div_(p.sum(1, keepdim=True))
        ctx.save_for_backward(p, column)
        return -p.gather(1, column[:, None]).clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, grad):
        p, column = ctx.saved_tensors
        p[torch.arange(len(column), device=p.device), column] -= 1
        return p.div_(len(column)).mul_(grad), None


class CrossEntropy(Reference):
    """The same with F.cross_entropy, as anyone would write it."""

    def loss(self, cosine, column):
        return F.cross_entropy(_with_margin(cosine, column), column)


def batch_of(batch: int, num_classes: int):
    return (torch.randn(batch, D, device=DEVICE, requires_grad=True), torch.randint(num_classes, (batch,)))


def step_of(head: PartialFC, x, labels):
    """One step of ours, the learning rate as the reference's."""
    def step():
        head.begin_step(head.step, 0.1)
        head(x, labels).backward()
        head.finish_step()
    return step


def peer_step(peer: Reference, x, labels):
    labels = labels.to(DEVICE)
    return lambda: peer.step(x, labels)


def matmuls(batch: int, classes: int):
    """The four matmuls of a step and nothing else, in tiles (CPU: fp32) or chunks (CUDA: bf16 operands, fp32 out)."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    n = min(classes, (1 << 17) if CUDA else margin_softmax.TILE // max(batch, D))
    x = torch.randn(batch, D, device=DEVICE, dtype=dtype)
    w = torch.randn(n * 2, D, device=DEVICE, dtype=dtype) if CUDA else torch.randn(classes, D)

    def run():
        for i in range(0, classes, n):
            tile = w[:min(n, classes - i)] if CUDA else w[i:i + n]
            if CUDA:
                g = torch.mm(x, tile.T)
                g = torch.mm(x, tile.T)
                torch.mm(g, tile, out_dtype=torch.float32)
                torch.mm(g.T, x, out_dtype=torch.float32)
            else:
                logits, gx, gw = room[:batch * len(tile)].view(batch, -1), total, spare[:len(tile)]
                torch.mm(x, tile.T, out=logits)
                torch.mm(x, tile.T, out=logits)
                gx.addmm_(logits, tile)
                torch.mm(logits.T, x, out=gw)
    room, total, spare = torch.zeros(0 if CUDA else batch * n), torch.zeros(batch, D), torch.zeros(0 if CUDA else n, D)
    return run


def compare(report, classes, batch, rate=1.0, rounds=5, names=("reference", "cross entropy")):
    """Time and memory of a step, ours beside the peers that fit into memory."""
    x, labels = batch_of(batch, classes)
    head = PartialFC(CosFace(), D, classes, rate, update="fused", device=DEVICE)
    steps = {"ours": step_of(head, x, labels)}
    memory, peers = {"ours": _peak(steps["ours"])}, {}
    if CUDA:
        report.add(f"C={classes:,} B={batch} rate {rate}: all memory of ours", torch.cuda.max_memory_allocated() / 2 ** 30,
                   unit="GiB")
    for name in names:
        try:
            peers[name] = (Reference if name == "reference" else CrossEntropy)(classes, rate)
            steps[name] = peer_step(peers[name], x, labels)
            memory[name] = _peak(steps[name])
        except torch.OutOfMemoryError:
            report.say(f"the {name} runs out of memory at {classes:,} classes")
            peers.pop(name, None), steps.pop(name, None)
            torch.cuda.empty_cache()
    share = int(classes * rate)
    steps["limit"] = matmuls(batch, share)
    took = medians(steps, rounds)
    what = f"C={classes:,} B={batch}" + (f" rate {rate}" if rate < 1 else "")
    for name in names:
        report.add(f"{what}: step against {name}", 1e3 * took["ours"], 1e3 * took[name] if name in took else None,
                   1e3 * took["limit"], "ms")
        report.add(f"{what}: extra memory against {name}", memory["ours"] / 2 ** 20,
                   memory[name] / 2 ** 20 if name in memory else None, None, "MiB")
    report.add(f"{what}: share of the four-matmul limit", 100 * took["limit"] / took["ours"], None, 100, "%", True)


def _peak(step):
    step()  # what a first step alone allocates
    return peak_memory(step)


def accuracy(report, classes, batch):
    """Errors against the plain formula in float64, and the gate."""
    def relative(a, b):
        return ((a.double() - b).norm() / b.norm()).item()

    w, labels = normal(1, "w", torch.arange(classes)[:, None], torch.arange(D)), torch.arange(batch) * 7 % classes
    x = (w[labels] + normal(1, "x", torch.arange(batch)[:, None], torch.arange(D)))
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    loss64 = margin_softmax_reference(x64, w64, labels, CosFace())
    loss64.backward()
    for operands, gate in (torch.float32, 1e-5), (torch.bfloat16, 1e-2):
        head = PartialFC(CosFace(), D, classes, operands=operands, device=DEVICE)
        head.weight.data.copy_(w)
        mine = x.clone().to(DEVICE).requires_grad_()
        loss = head(mine, labels)
        loss.backward()
        name = f"error against float64, C={classes:,}, {str(operands)[6:]}: "
        report.add(name + "loss", abs(loss.item() - loss64.item()) / loss64.item(), None, gate, "relative")
        report.add(name + "gradient of x", relative(mine.grad.cpu(), x64.grad), None, gate, "relative")
        report.add(name + "gradient of the centers", relative(head.weight.grad.cpu(), w64.grad), None, gate, "relative")


def growth(report, sizes, batch, rounds):
    steps = {}
    for classes in sizes:
        x, labels = batch_of(batch, classes)
        steps[classes] = step_of(PartialFC(CosFace(), D, classes, update="fused", device=DEVICE), x, labels)
    took = medians(steps, rounds)
    n, t = torch.tensor(list(took)).double(), 1e3 * torch.tensor(list(took.values())).double()
    slope, fixed = torch.linalg.lstsq(torch.stack([n, torch.ones_like(n)], 1), t).solution.tolist()
    off = ((fixed + slope * n - t).abs() / t).max().item()
    report.say(f"growth with C, B={batch}: {', '.join(f'{c:,}: {1e3 * v:.1f} ms' for c, v in took.items())}; "
               f"{fixed:.2f} ms + {1e6 * slope:.1f} ms for each million; farthest from the line {100 * off:.1f} %")
    report.add(f"C={sizes[-1]:,}: whole head / one with 1/8 of its classes", took[sizes[-1]] / took[sizes[0]], None, 8,
               "times", True)


def on_ranks(world: int, fn, *args) -> list:
    """`fn(rank, world, *args)` in `world` processes of one thread that form a group; the results by rank."""
    with (tempfile.TemporaryDirectory() as folder,
          concurrent.futures.ProcessPoolExecutor(world, mp.get_context("spawn")) as pool):
        return list(pool.map(_in_group, range(world), *zip(*[(world, folder, fn, args)] * world)))


def _in_group(rank, world, folder, fn, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        return fn(rank, world, *args)
    finally:
        dist.destroy_process_group()


def step_seconds(rank, world, classes, batch, rounds):
    """Median seconds of a step on this rank."""
    part = shard_range(batch, rank, world)
    x, labels = torch.randn(len(part), D, requires_grad=True), torch.randint(classes, (len(part),))
    return medians({"step": step_of(PartialFC(CosFace(), D, classes, update="fused"), x, labels)}, rounds)["step"]


def bytes_sent(rank, world, batch):
    """Bytes that this rank gives to, or gets from, each collective of one step, whichever is more."""
    counted = []
    for name, large in (("all_gather_into_tensor", 0), ("reduce_scatter_tensor", 1), ("all_reduce", 0)):
        def counting(*args, original=getattr(dist, name), large=large, **kwargs):
            counted.append(args[large].nbytes)
            return original(*args, **kwargs)
        setattr(dist, name, counting)
    part = shard_range(batch, rank, world)
    x, labels = torch.ones(len(part), D, requires_grad=True), torch.zeros(len(part), dtype=torch.int64)
    step_of(PartialFC(CosFace(), D, 64, update="fused"), x, labels)()
    return sum(counted)


def against_peers(report):
    quick = report.quick
    if CUDA:
        for classes in (20_000,) if quick else (390_144, 1_281_833):
            compare(report, classes, 1024, rounds=20)
            torch.cuda.empty_cache()
        compare(report, 50_000 if quick else 10_000_000, 1024, rounds=5, names=("reference",))
        compare(report, 50_000 if quick else 10_000_000, 1024, rate=0.1, rounds=5, names=("reference",))
        growth(report, [c // (50 if quick else 1) for c in (160_229, 390_144, 1_281_833)], 1024, 10)
    else:
        compare(report, 5_000 if quick else 100_000, 256, rounds=2 if quick else 7)
        compare(report, 20_000 if quick else 1_000_000, 256, rate=0.1, rounds=2 if quick else 3, names=("reference",))


def main():
    report = Report(__doc__, ONE_ALLOCATOR)
    under_each_allocator(report, lambda: against_peers(report))
    if not report.args.one_allocator:
        accuracy(report, 2_000 if report.quick else 20_000, 256)
        if not CUDA:
            growth(report, [c // (20 if report.quick else 1) for c in (12_500, 25_000, 50_000, 100_000)], 256, 5)
            classes = 5_000 if report.quick else 100_000
            times = [[max(on_ranks(world, step_seconds, classes, 256, 2 if report.quick else 5)) for world in (1, 2)]
                     for _ in range(1 if report.quick else 3)]
            one, two = (sorted(t)[len(t) // 2] for t in zip(*times))
            report.add(f"C={classes:,} B=256: two ranks against one, a thread each", 1e3 * two, 1e3 * one, 500 * one, "ms")
            report.add("bytes across ranks, B=1024 D=256", on_ranks(2, bytes_sent, 1024)[0] / 1e6, None, 2.2, "MB")
    synchronize()
    report.end()


if __name__ == "__main__":
    run_cli(main)
