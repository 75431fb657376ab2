"""Compiles the layer on four devices and counts what they communicate."""

import json
import re

import jax
import keras

import inbatch_neg

DIMENSIONS = 64
ROWS_OF_TABLE = 99_991
_COLLECTIVE = re.compile(
    r"= \(?(\w+\[[\d,]*\]).*? (all-gather|all-reduce|reduce-scatter"
    r"|all-to-all|collective-permute)(?:-start)?\("
)


def compiled(rows, cross_replica):
    """Returns the compiled loss and both gradients, of sharded rows."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    by_row = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("batch")
    )
    layer = inbatch_neg.InBatchNegativeSoftmax(cross_replica=cross_replica)
    layer.built = True

    def loss(query, candidate):
        return layer(query, candidate, training=True).mean()

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        out_shardings=(None, (by_row, by_row)),
    )
    shape = jax.ShapeDtypeStruct((rows, DIMENSIONS), "float32", sharding=by_row)
    return step.lower(shape, shape).compile()


def compiled_sparse(rows):
    """Returns the compiled step of a sparse table, of sharded rows."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    spec = jax.sharding.PartitionSpec
    by_row = jax.sharding.NamedSharding(mesh, spec("batch"))
    whole = jax.sharding.NamedSharding(mesh, spec())
    layer = inbatch_neg.SparseEmbedding(ROWS_OF_TABLE, DIMENSIONS)
    layer.build()
    variables = [v.value for v in layer.trainable_variables]

    def loss(trainable, ids):
        vectors, _ = layer.stateless_call(trainable, [], ids)
        return (vectors**2).mean()

    step = jax.jit(jax.grad(loss), out_shardings=whole, donate_argnums=0)
    ids = jax.ShapeDtypeStruct((rows,), "int32", sharding=by_row)
    return step.lower(variables, ids).compile()


def facts(program):
    text = program.as_text()
    loops = []
    for body in re.findall(r"body=%?([\w.\-]+)", text):
        found = re.search(rf"\n%?{re.escape(body)} .*?\n}}", text, re.DOTALL)
        loops += _COLLECTIVE.findall(found.group(0))
    return {
        "collectives": sorted(
            kind + " " + s for s, kind in _COLLECTIVE.findall(text)
        ),
        "in_loops": sorted(kind + " " + shape for shape, kind in loops),
        "trips": [int(n) for n in re.findall(r'trip_count.*?n":"(\d+)"', text)],
        "shapes": sorted(set(re.findall(r"f32\[\d+,\d+\]", text))),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def show(rows):
    """Prints lines of JSON, for a global batch of so many rows."""
    print(json.dumps(facts(compiled(rows, cross_replica=True))))
    print(json.dumps(facts(compiled(rows, cross_replica=False))))
    print(json.dumps(facts(compiled_sparse(rows))))
