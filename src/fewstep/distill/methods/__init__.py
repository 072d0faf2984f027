"""Methods of distillation, one file each: every one is a `Distiller` of the loop."""
