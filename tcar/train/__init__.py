"""Training: many small heads side by side, and one large model on any number of processes.

`heads` trains fusions on kept tokens, one to a core, and `baselines` published models on clips: what the notebooks
call. `trainer` is for large runs: `tasks` and `clip_tasks` say what is trained, `stepping` is one step of it,
`checkpoints` keeps its state, and `watch`, `tracking` and `alerts` tell how it goes. `python -m tcar.train` runs it.
"""
