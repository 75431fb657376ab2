"""Breaks the code on purpose, fault by fault, and sees a test fail each time.

    python -m tests.faults              # all of them, minutes
    python -m tests.faults log memory   # those whose names have such a word

Each fault is applied to a copy of the tree. First the tests that are to catch
the faults must pass without them. The exit status is 1 if they do not, or if a
fault is not caught. `test_faults.py` keeps the texts and the tests of the
faults up to date with the tree.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 600  # for the tests of a fault


class Fault(NamedTuple):
    """A fault and the tests that catch it.

    Attributes:
        name: What goes wrong.
        file: Path in `inbatch_neg`.
        old: A text that the file has once.
        new: The text in its place.
        backend: The one to run the tests on.
        tests: Path in `tests` and the name of a test, with or without
            parameters. At least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    backend: str
    tests: tuple[str, ...]


FAULTS = (
    # Scores and masks
    Fault(
        "sign of log q",
        "softmax/log_q_and_masks.py",
        "stop_gradient(-ops.log(probability))",
        "stop_gradient(ops.log(probability))",
        "jax",
        ("test_ops.py::test_small_sizes[dense-5-9]",),
    ),
    Fault(
        "log q not subtracted from the positive",
        "softmax/log_q_and_masks.py",
        "positive_bias = column_bias[:rows]",
        "positive_bias = None",
        "jax",
        ("softmax/test_logits.py::test_layout_of_the_logits[None-8]",),
    ),
    Fault(
        "candidate_mask dropped",
        "softmax/log_q_and_masks.py",
        "masked_columns = ops.logical_not(batch.candidate_mask)",
        "masked_columns = None",
        "jax",
        ("test_ops.py::test_each_rule[dense-11-candidate_mask]",),
    ),
    Fault(
        "mask of candidate ids dropped",
        "softmax/log_q_and_masks.py",
        "codes.append((column_codes[:rows], column_codes))",
        "pass",
        "jax",
        ("test_ops.py::test_each_rule[dense-11-candidate_ids]",),
    ),
    Fault(
        "mask of query ids dropped",
        "softmax/log_q_and_masks.py",
        "codes.append((positive_codes[:rows], column_codes))",
        "pass",
        "jax",
        ("test_ops.py::test_each_rule[dense-11-query_ids]",),
    ),
    Fault(
        "positive masked by its own id",
        "softmax/chunks.py",
        "not include_positive",
        "include_positive",
        "jax",
        ("test_ops.py::test_each_rule[chunked-11-candidate_ids]",),
    ),
    Fault(
        "times the temperature",
        "softmax/loss.py",
        "query = query / temperature",
        "query = query * temperature",
        "torch",
        ("test_ops.py::test_temperature_as_a_number[dense-0.05]",),
    ),
    Fault(
        "hard negatives of n-tuples before the positives",
        "softmax/batch.py",
        "ops.concatenate([tensor[:, 0], negatives])",
        "ops.concatenate([negatives, tensor[:, 0]])",
        "torch",
        (
            "softmax/test_tuples.py::"
            "test_the_order_of_logits_and_both_directions",
        ),
    ),
    # Losses and gradients
    Fault(
        "repeated rows of the last chunk counted twice",
        "softmax/chunks.py",
        "not known or rows % self.size != 0",
        "False",
        "jax",
        ("softmax/test_exact.py::test_chunks_of_every_remainder[5]",),
    ),
    Fault(
        "sample weight dropped",
        "softmax/loss.py",
        'return results["loss"] * row_weight, gradient',
        'return results["loss"], gradient',
        "jax",
        ("test_ops.py::test_each_rule[chunked-11-sample_weight]",),
    ),
    Fault(
        "upstream gradient of row 0 for all rows",
        "softmax/loss.py",
        "ops.all(ops.equal(upstream, upstream[:1]))",
        "ops.all(ops.equal(upstream, upstream))",
        "jax",
        ("test_ops.py::test_upstream_gradients[chunked-upstream2]",),
    ),
    Fault(
        "gradient to a vector that lost",
        "softmax/several_vectors.py",
        "result.append(ops.where(won, upstream, nothing))",
        "result.append(ops.where(won, nothing, upstream))",
        "jax",
        ("softmax/test_vectors.py::test_every_size[5-9-4]",),
    ),
    # Chosen negatives
    Fault(
        "shift of 0",
        "softmax/rotation.py",
        'constant(1, "int32")',
        'constant(0, "int32")',
        "jax",
        ("softmax/test_logits.py::test_shifts_of_the_layer[12-11]",),
    ),
    Fault(
        "another of equal scores among the hardest",
        "backends/torch.py",
        "if bool(has_ties.any()):",
        "if False:",
        "torch",
        (
            "softmax/test_hardest.py::test_hardest_of_equal_scores_are_the_first",
        ),
    ),
    Fault(
        "seed not advanced",
        "layers/negative_sampling.py",
        'dtype="float32", seed=seed',
        'dtype="float32", seed=1',
        "jax",
        ("softmax/test_logits.py::test_shifts_of_the_layer[12-4]",),
    ),
    # The layers
    Fault(
        "one direction of symmetric dropped",
        "layers/in_batch_negative_softmax.py",
        "result = 0.5 * (result + reverse)",
        "pass",
        "jax",
        (
            "layers/test_in_batch_negative_softmax.py::test_symmetric[dense-None]",
        ),
    ),
    Fault(
        "ids of the wrong side in the other direction",
        "softmax/batch.py",
        "candidate_ids=self.query_ids,",
        "candidate_ids=candidate_ids[:rows],",
        "jax",
        (
            "layers/test_in_batch_negative_softmax.py::test_symmetric[dense-None]",
        ),
    ),
    Fault(
        "sign of the learned logarithm",
        "layers/temperature.py",
        "ops.exp(ops.stop_gradient(beyond) - log_scale)",
        "ops.exp(log_scale - ops.stop_gradient(beyond))",
        "torch",
        (
            "layers/test_in_batch_negative_softmax.py"
            "::test_the_learned_temperature",
        ),
    ),
    Fault(
        "no gradient of the temperature",
        "layers/temperature.py",
        "- log_scale)",
        "- ops.stop_gradient(log_scale))",
        "torch",
        (
            "layers/test_in_batch_negative_softmax.py"
            "::test_the_gradient_of_the_learned_temperature",
        ),
    ),
    Fault(
        "rows of the memory in the wrong order",
        "layers/cross_batch_memory.py",
        "ops.concatenate([batch[name], stored])",
        "ops.concatenate([stored, batch[name]])",
        "torch",
        ("layers/test_cross_batch_memory.py::test_keeps_the_last_rows",),
    ),
    Fault(
        "an empty slot of the memory counted",
        "layers/cross_batch_memory.py",
        "slots < self._filled",
        "slots <= self._filled",
        "torch",
        ("layers/test_cross_batch_memory.py::test_keeps_the_last_rows",),
    ),
    Fault(
        "warm-up of the memory ignored",
        "layers/cross_batch_memory.py",
        ">= self.warmup_steps",
        ">= 0",
        "torch",
        ("layers/test_cross_batch_memory.py::test_warm_up",),
    ),
    Fault(
        "partial batch not refused",
        "layers/partial_batch.py",
        "if rows == 1 or (expected is not None and rows != expected):",
        "if rows == 1:",
        "jax",
        ("layers/test_partial_batch.py::test_a_smaller_batch_size_on_purpose",),
    ),
    Fault(
        "training and inference of one batch size",
        "layers/partial_batch.py",
        "kind = bool(training)",
        "kind = True",
        "torch",
        ("layers/test_partial_batch.py::test_validation_data_of_another_size",),
    ),
    Fault(
        "other hashes of ids than in a saved model",
        "layers/hashing.py",
        "np.random.RandomState(k)",
        "np.random.RandomState(k + 1)",
        "torch",
        ("layers/test_saved_before.py::test_state_outputs_and_the_next_step",),
    ),
    Fault(
        "clock of the estimate counts batches",
        "layers/streaming_sampling_probability.py",
        "self._clock.assign_add(ops.cast(rows, self._clock.dtype))",
        "self._clock.assign_add(1)",
        "torch",
        (
            "layers/test_streaming_sampling_probability.py"
            "::test_starts_as_an_exact_count",
        ),
    ),
    # Towers in chunks
    Fault(
        "every chunk of a tower draws the same dropout",
        "chunked_tower/torch.py",
        "(v, new[id(v)] if id(v) in new else _snapshot(v.value))",
        "(v, _snapshot(v.value))",
        "torch",
        (
            "layers/test_chunked_tower_state.py"
            "::test_state_goes_from_chunk_to_chunk[draws-eager]",
        ),
    ),
    Fault(
        "every chunk with the same dropout",
        "chunked_tower/jax.py",
        "[new.get(id(v), x) for v, x in zip(state, values)]",
        "list(values)",
        "jax",
        (
            "layers/test_chunked_tower_state.py"
            "::test_each_chunk_is_drawn_anew_and_each_step_too",
        ),
    ),
    Fault(
        "gradient of the last chunk dropped",
        "chunked_tower/tensorflow_gradients.py",
        "sums = [_sum(*pair) for pair in zip(sums, gradients)]",
        "pass",
        "tensorflow",
        ("layers/test_chunked_tower.py::test_equals_the_tower[eager]",),
    ),
    # Sparse tables
    Fault(
        "sparse: repeated ids not summed",
        "sparse_embedding/torch.py",
        "gradient = gradient.coalesce()",
        "gradient = gradient._coalesced_(True)",
        "torch",
        ("sparse_embedding/test_exact.py::test_equals_the_loops[fit-0.1]",),
    ),
    Fault(
        "sparse: scale of the loss not undone",
        "sparse_embedding/layer.py",
        "ops.where(scale == 0.0, 1.0, scale)",
        "1.0",
        "jax",
        ("sparse_embedding/test_traps.py::test_loss_scaling[fixed]",),
    ),
    Fault(
        "sparse: accumulator before the step",
        "sparse_embedding/tensorflow.py",
        "tf.gather(accumulators, rows) + squares",
        "tf.gather(accumulators, rows)",
        "tensorflow",
        ("sparse_embedding/test_exact.py::test_equals_the_loops[fit-0.1]",),
    ),
    Fault(
        "sparse: a table without gradient set to zero",
        "sparse_embedding/jax.py",
        "jnp.where(jnp.any(value), value, self.value)",
        "value",
        "jax",
        (
            "sparse_embedding/test_traps.py::test_a_table_that_the_step_does_not_use",
        ),
    ),
    # Evaluation
    Fault(
        "seen items not left out",
        "evaluation/ranking.py",
        "ahead -= _count_seen(",
        "ahead -= 0 * _count_seen(",
        "torch",
        ("evaluation/test_callback.py::test_random_cases[0]",),
    ),
    Fault(
        "ties counted for the model",
        "evaluation/ranking.py",
        "threshold[at] = own - slack * length",
        "threshold[at] = own + slack * length",
        "torch",
        ("evaluation/test_callback.py::test_a_collapsed_model_is_last",),
    ),
    Fault(
        "targets outside of the catalogue dropped",
        "evaluation/callback.py",
        "            row, ranks, len(query)",
        "            row[known], ranks[known], len(query)",
        "torch",
        (
            "evaluation/test_callback.py"
            "::test_a_target_that_is_not_in_the_catalogue",
        ),
    ),
    # Data
    Fault(
        "order not changed between epochs",
        "data/arrays.py",
        "options.rng(seed, epoch)",
        "options.rng(seed, 0)",
        "jax",
        ("data/test_arrays.py::test_shuffled_anew_and_reproducible",),
    ),
    Fault(
        "remainder kept",
        "data/stream.py",
        "if size == whole or options.pad:",
        "if size:",
        "jax",
        ("data/test_batches.py::test_regrouped_by_row[function]",),
    ),
    Fault(
        "every process reads the rows of the first",
        "data/options.py",
        "self.batch_size * self.process\n",
        "0\n",
        "jax",
        ("data/test_shard.py::test_each_row_once[arrays-True]",),
    ),
    Fault(
        "first epoch forgotten",
        "data/options.py",
        "self.first_epoch.value() + epoch",
        "epoch",
        "jax",
        ("data/test_first_epoch.py::test_the_order_starts_there[parquet]",),
    ),
    Fault(
        "epoch of a look kept",
        "data/stream.py",
        "self.options.first_epoch.forget()",
        "pass",
        "jax",
        ("data/test_first_epoch.py::test_as_if_never_stopped[parquet]",),
    ),
    Fault(
        "row group of parquet dropped",
        "data/parquet.py",
        "rng.permutation(len(groups))",
        "rng.permutation(len(groups) - 1)",
        "jax",
        ("data/test_parquet.py::test_shuffled[7-path]",),
    ),
    Fault(
        "padding has weight 1",
        "data/padding.py",
        'return marked(batch, mask, mask.astype("float32"), np)',
        'return marked(batch, mask, np.ones(batch_size, "float32"), np)',
        "jax",
        (
            "data/test_remainder.py"
            "::test_the_rows_their_weights_and_the_mask[arrays]",
        ),
    ),
    # Sequences
    Fault(
        "mean over all positions in place of the valid ones",
        "positions.py",
        "sample_weight=counted / share",
        "sample_weight=counted",
        "torch",
        ("test_positions.py::test_the_layer[arguments0-options0]",),
    ),
    Fault(
        "padding is a negative",
        "positions.py",
        "candidate_mask=mask",
        "candidate_mask=ops.ones_like(mask)",
        "torch",
        ("test_positions.py::test_logits_are_weighted_in_the_loss",),
    ),
    Fault(
        "padding is a negative in the other direction",
        "softmax/batch.py",
        "candidate_mask=mask,",
        "",
        "torch",
        ("test_positions.py::test_both_directions",),
    ),
    Fault(
        "stored padding is a negative later",
        "layers/cross_batch_memory.py",
        " & ~ops.isnan(shard[:, 0])",
        "",
        "torch",
        ("test_positions.py::test_further_candidates[memory]",),
    ),
    # Losses, metrics, replicas
    Fault(
        "sum for the mean of the losses",
        "losses.py",
        "reduction=reduction,",
        'reduction="sum",',
        "torch",
        ("test_losses.py::test_reductions",),
    ),
    Fault(
        "rank of the metric off by one",
        "metrics.py",
        "1.0 / (1.0 + ops.cast(ahead, self.dtype))",
        "1.0 / (2.0 + ops.cast(ahead, self.dtype))",
        "torch",
        ("test_metrics.py::test_mean_reciprocal_rank",),
    ),
    Fault(
        "candidates of the wrong replica first",
        "layers/global_batch.py",
        "-collectives.index, axis=0",
        "collectives.index, axis=0",
        "jax",
        ("replicas/test_jax.py::test_columns_follow_the_global_batch",),
    ),
)


def occurrences(fault):
    """Returns how often the file of a fault has the text to replace."""
    return (ROOT / "inbatch_neg" / fault.file).read_text().count(fault.old)


def run_tests(folder, tests, backend, cache):
    """Runs tests in a copy of the tree.

    Returns:
        The exit status of pytest, and what it printed.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rf", "--tb=no"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *(f"tests/{x}" for x in tests)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout + done.stderr


def copy_tree(folder):
    for name in ("inbatch_neg", "tests", "docs"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "pyproject.toml", folder)


def pass_without_fault(faults, folder, cache):
    """Returns whether the tests of the faults pass, on each backend."""
    copy_tree(folder)
    passed = True
    for backend in dict.fromkeys(fault.backend for fault in faults):
        chosen = [fault.tests for fault in faults if fault.backend == backend]
        tests = dict.fromkeys(test for tests in chosen for test in tests)
        status, output = run_tests(folder, tests, backend, cache)
        summary = output.strip().splitlines()[-1:]
        print(f"Without a fault, {backend}: {' '.join(summary)}", flush=True)
        if status:
            passed = False
            print(output)
    return passed


def result_of(fault, folder, cache):
    """Returns whether a fault is caught, and by what."""
    if occurrences(fault) != 1:
        return False, f"the text occurs {occurrences(fault)} times"
    copy_tree(folder)
    path = folder / "inbatch_neg" / fault.file
    path.write_text(path.read_text().replace(fault.old, fault.new))
    status, output = run_tests(folder, fault.tests, fault.backend, cache)
    failed = re.search(r"^FAILED tests/(\S+)", output, re.MULTILINE)
    # 1: tests ran and some failed. Anything else shows nothing, such as 2 for
    # a file that cannot be imported.
    if status == 1 and failed:
        return True, failed.group(1)
    return False, "no test fails" if status == 0 else f"pytest: {status}"


def main(*words):
    faults = [f for f in FAULTS if not words or any(w in f.name for w in words)]
    if not faults:
        print("There is no such fault.")
        return 1
    missed = []
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        cache = str(place / "jax")
        if not pass_without_fault(faults, place / "sound", cache):
            return 1
        print("\n| fault | backend | seconds | caught by |\n|---|---|---|---|")
        for number, fault in enumerate(faults):
            start = time.monotonic()
            caught, by = result_of(fault, place / str(number), cache)
            seconds = time.monotonic() - start
            if not caught:
                missed.append(fault.name)
                by = f"**nothing**: {by}"
            print(
                f"| {fault.name} | {fault.backend} | {seconds:.0f} | {by} |",
                flush=True,
            )
    print(f"\n{len(faults) - len(missed)} of {len(faults)} faults are caught.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
