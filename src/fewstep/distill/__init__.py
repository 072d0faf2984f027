"""Step distillation: training a student that needs few steps from any pipeline, with no data but prompts.

`run.run` does all of it from a configuration. Underneath: `paths` runs the teacher, `methods` say what to minimise,
`loop` trains, `export` writes a plain diffusers pipeline.
"""
