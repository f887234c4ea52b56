"""The wiring of a run: which parts it has, where their processes run and with what environment, when it saves.

It also checks the machine for a run and predicts what the run will need, which nothing is started for.

What a part does with its share of the configuration is the part's own business (`setup` and `from_config` modules).
"""
