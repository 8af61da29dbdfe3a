"""Forms of one network in fewer bits: accuracy, size of the file and speed on a CPU, each beside fp32 (the peer).

    python benchmarks/bench_precision.py [--model M.onnx] [--data DIR] [--calibration DIR ...] [--quick] [--json]

M.onnx is what `onnx_export.py` wrote, in fp32; without it the network has random weights (speed and size alone mean
something). DIR is evaluated on (DIR/<type>/*.jpg; default: synthetic documents). Calibration takes 400 images, by default
synthetic ones of other types; as at export every fourth of them is kept to compare features on. Times: so many runs at
once as threads, each on one thread, as inference does it.
"""
import inference  # noqa: F401 - before ONNX Runtime, whose reports it turns off

# isort: split
import collections
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from bench_inference import make_model
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.transformers.float16 import convert_float_to_float16
from side_by_side import Report, UserError, medians, run_cli

from backbones.quantize import half_weights, to_int8
from eval import evaluate_folder
from inference.image import list_images
from inference.model import load_model
from onnx_export import INT8_IMAGES, sample
from synth import write_eval, write_train

FP16, BF16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
SHIPPED = "int8 large layers, MinMax (--int8)"
THROUGHOUT = "int8 throughout, MinMax"


def forms(proto, images):
    """{name: model}: those that `onnx_export.py` writes, and those that it does not."""
    everything = [node.name for node in proto.graph.node]
    return {
        "fp16 weights (--fp16)": half_weights(proto, FP16),
        "bf16 weights": half_weights(proto, BF16),
        "int8 weights": int8_weights(proto),
        "fp16 throughout": convert_float_to_float16(copied(proto), keep_io_types=True),
        SHIPPED: half_weights(to_int8(proto, images)),
        THROUGHOUT: to_int8(proto, images, everything)}


def calibrated(proto, images):
    """(name, model): int8 with ranges found otherwise; the speed is the same."""
    everything = [node.name for node in proto.graph.node]
    for method in (CalibrationMethod.Percentile, CalibrationMethod.Entropy):
        yield f"int8 large layers, {method.name}", half_weights(to_int8(proto, images, method=method))
        yield f"int8 throughout, {method.name}", to_int8(proto, images, everything, method)


def copied(proto):
    return onnx.ModelProto.FromString(proto.SerializeToString())


def int8_weights(proto):
    """Weights stored in 8 bits with a scale for each output channel; computed in fp32 all the same."""
    small = copied(proto)
    nodes, made = list(small.graph.node), []
    for weight in list(small.graph.initializer):
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1 and weight.dims[0] > 1:
            name, values = weight.name, onnx.numpy_helper.to_array(weight)
            scale = np.abs(values).max(tuple(range(1, values.ndim)), keepdims=True) / np.float32(127) + np.float32(1e-12)
            weight.CopyFrom(onnx.numpy_helper.from_array(np.rint(values / scale).astype(np.int8), name + "_8"))
            small.graph.initializer.append(onnx.numpy_helper.from_array(scale, name + "_scale"))
            made += [onnx.helper.make_node("Cast", [name + "_8"], [name + "_whole"], to=onnx.TensorProto.FLOAT),
                     onnx.helper.make_node("Mul", [name + "_whole", name + "_scale"], [name])]
    del small.graph.node[:]
    small.graph.node.extend(made + nodes)
    return small


def loaded(made, folder):
    """{name: Model} of (name, model) pairs, by way of files in `folder`."""
    models = {}
    for name, form in made:
        onnx.save(form, folder / f"{name}.onnx")
        models[name] = load_model(folder / f"{name}.onnx")
    return models


def accuracy(report, models, data, images):
    exact, found = models["fp32"].embed(images), {}
    for name, model in models.items():
        evaluation = evaluate_folder(model.embed, data, model.image_size, progress=False, baseline=False, fit=model.fit)
        verification = evaluation.verification
        cosines = (model.embed(images) * exact).sum(axis=1)
        found[name] = {"AUROC": verification.auroc, "TPR at FPR 1e-4": verification.tpr_at_fpr["1e-4"],
                       "top-1": evaluation.identification.top1, "threshold at FPR 1e-3": verification.thresholds["1e-3"],
                       "mean cosine with fp32": cosines.mean(), "lowest cosine with fp32": cosines.min()}
    for name in list(models)[1:]:
        for what, value in found[name].items():
            report.add(f"{name}: {what}", float(value), float(found["fp32"][what]), unit="", higher_is_better=True)


def size(report, models):
    for name, model in list(models.items())[1:]:
        report.add(f"{name}: file", *(Path(path).stat().st_size / 1e6 for path in (model.path, models["fp32"].path)),
                   unit="MB")


def speed(report, models):
    random = np.random.default_rng(0)
    side = models["fp32"].image_size
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            for batch in (1, 16):
                pixels = [random.random((batch, 3, side, side), np.float32)] * threads

                def run(session):
                    list(pool.map(lambda part: session.run(["feats"], {"img": part}), pixels))

                rounds = 2 if report.quick else 400 // batch + 150
                for name in list(models)[1:]:
                    times = medians({key: partial(run, models[key].session) for key in (name, "fp32")}, rounds, warm_up=3)
                    report.add(f"{name}: {batch} a run, {threads} thread{'s' * (threads > 1)}, an image",
                               *(times[key] / batch / threads * 1e3 for key in (name, "fp32")))


def by_operator(report, models, folder):
    """Where the time goes, in µs an image: 16 a run on one thread, by kind of node, as ONNX Runtime's profile has it."""
    columns = {name: operators(models[name].path, folder, 2 if report.quick else 60)
               for name in ("fp32", THROUGHOUT, SHIPPED)}
    report.say("\nµs an image by operator   " + "   ".join(columns))
    kinds = sorted(set().union(*columns.values()), key=lambda kind: -max(column[kind] for column in columns.values()))
    for kind in [*kinds[:12], "all"]:
        cells = (f"{column[kind] if kind != 'all' else column.total():{len(name)}.1f}" for name, column in columns.items())
        report.say(f"{kind:<25} " + "   ".join(cells))


def operators(path, folder, runs):
    """Counter {kind of node: µs an image}, the median of each node's `runs`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 4, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).random((16, *session.get_inputs()[0].shape[1:]), np.float32)
    for _ in range(runs):
        session.run(["feats"], {"img": pixels})
    times = collections.defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"], event["args"]["op_name"]].append(event["dur"])
    kinds = collections.Counter()
    for (_, kind), durations in times.items():
        kinds[kind] += statistics.median(durations) / 16
    return kinds


def main():
    report = Report(__doc__, ("--model", {"metavar": "M.onnx", "help": "an fp32 file of onnx_export.py"}),
                    ("--data", {"metavar": "DIR", "help": "folder of types to evaluate on"}),
                    ("--calibration", {"metavar": "DIR", "nargs": "+", "help": "folders of images to calibrate on"}))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        types, captures = (6, 2) if report.quick else (120, 4)
        count = 40 if report.quick else INT8_IMAGES
        if not report.args.data:
            write_eval(folder / "eval", types, captures, 0, first_type=count)
        if not report.args.calibration:
            write_train(folder / "calibration", count, 1, 0)
        path = report.args.model or make_model(folder)[0]
        proto, exact = onnx.load(path), load_model(path)
        if exact.metadata.get("precision", "fp32") != "fp32":
            raise UserError(f"--model {path}: already {exact.metadata['precision']}; give the fp32 file of onnx_export.py")

        roots = report.args.calibration or [folder / "calibration"]
        files = [Path(root, name) for root in roots for name in list_images(root)]
        images, _, kept = sample(exact, files, count)
        models = {"fp32": exact, **loaded(forms(proto, images[~kept]).items(), folder)}
        # A random network's ranges are too small for histograms, which keep every number of every third image here.
        more = loaded(calibrated(proto, images[~kept][::3]), folder) if report.args.model else {}
        accuracy(report, models | more, report.args.data or folder / "eval", images[kept])
        size(report, models)
        speed(report, models)
        by_operator(report, models, folder)
    report.end()


if __name__ == "__main__":
    run_cli(main)
