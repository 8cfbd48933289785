"""Training: everything that is trained, by one trainer, on one process or many.

`settings` has its parameters. `tasks` (on stored `tokens`) and `clip_tasks` say what is trained, each with the
parameters of a run and a seed. `trainer` trains together what reads the same batches, each as a `training` of its own:
`stepping` is one step of it over all `processes`, `losses` what it learns from, `recipe` how long and at which rate,
`checkpoints` keep its state. `watch`, `tracking` and `alerts` tell how it goes. `tcar train` runs it.
"""
