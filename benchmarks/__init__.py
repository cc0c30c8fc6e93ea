"""The benchmark harness: our union, its peers and the plain kernel, interleaved in one run.

Run it with ``python -m benchmarks``; ``benchmarks/README.md`` says what each number means.
"""
