-- A new run with the same spec. One that had begun to train goes on from its newest checkpoint.
-- The new run belongs to no Application: what Git does not hold would be pruned, and what the failed run owned would go
-- with it. Write it into Git when it should stay.
local os = require("os")

-- Empty tables are left out: Argo CD cannot tell an empty map from an empty list.
local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local copied = {}
  for key, each in pairs(value) do
    if type(each) ~= "table" or next(each) ~= nil then
      copied[key] = copy(each)
    end
  end
  return copied
end

local status = obj.status or {}
local spec = copy(obj.spec)
spec.suspend = nil
-- The same series of adapters: without a name both would be named after their run.
spec.experiment = spec.experiment or obj.metadata.name
if status.trainingStartTime ~= nil then
  spec.resumeFrom = { run = obj.metadata.name }
  -- A claim that only one node may mount is then mounted once.
  spec.output = { claimName = status.output.claimName }
end

local run = {
  apiVersion = obj.apiVersion,
  kind = obj.kind,
  metadata = {
    name = obj.metadata.name .. "-" .. os.date("!%y%m%d%H%M%S"),
    namespace = obj.metadata.namespace,
    annotations = { ["finetune.dev/retry-of"] = obj.metadata.name },
  },
  spec = spec,
}
return { { operation = "create", resource = run } }
