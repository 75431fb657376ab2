"""Speed and memory of `inbatch_neg` beside its peers, and the targets.

    pip install "inbatch_neg[benchmark,jax,torch]"
    python -m tests.benchmarks                  # everything, about an hour
    python -m tests.benchmarks --check          # the targets, minutes
    python -m tests.benchmarks --only jax-8192  # one measurement

How it is measured: every figure comes from a process of its own
(`worker.py`), which makes the inputs from one seed, calls the loss and both
gradients of its mean once at a tiny size and once at full size, and then
repeats for a second or two. Time is the shortest repeat. Extra memory is the
peak of resident memory after the calls less the peak before the first call
at full size. Contenders take turns, A B C A B C, so that a busy machine is
busy for all; a ratio is the median over the rounds of the ratio within a
round. Processor time, summed over the threads, hardly depends on who else
uses the cores. Losses and gradients of contenders are compared, so that
nobody is fast at other maths. `--check` saves time: one round, and a process
for each engine, but for the contenders whose memory is wanted.

Where what stands: what is measured in `measurements.py`, the targets in
`targets.py`, the contenders in `on_tensorflow.py`, `on_jax.py`, `on_torch.py`
and, for the rotation, the layer and whole steps with two kinds of towers,
`on_tensorflow_{rotation,layer,movielens,mlp}.py`.

All of it runs on the CPU, where resident memory tells the whole story; but
`gpu.py`, with `gpu_engines.py`, which is a script of its own.
"""
