"""What vLLM loads into its own processes: schedulers, the receiving end of a broadcast, repairs.

vLLM imports these modules by name (`scheduler_cls`, `worker_extension_cls`), and importing them changes vLLM. No other
code of rlsys imports them.
"""
