"""Training: everything that is trained, by one trainer, on one process or many.

`trainer` trains together what reads the same batches, each as a `training` of its own; `tasks` (on stored `tokens`) and
`clip_tasks` say what is trained, `stepping` is one step of it, `recipe` how long and at which rate, `checkpoints` keeps
its state, and `watch`, `tracking` and `alerts` tell how it goes. `tcar train` runs it.
"""
