-- The pod saves a checkpoint and goes; nothing is lost.
obj.spec.suspend = true
return obj
