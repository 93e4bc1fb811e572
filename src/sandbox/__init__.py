"""The world outside on one machine, for the demo, the tests and the benchmarks. The product never imports it."""
