-- The health of a TrainingRun, from the conditions that its operator writes. They follow kstatus; what differs here is a
-- run that rests or waits: it is not done, and Argo CD has a word of its own for a suspended one.
-- Nothing but the base library is used, which is all that Argo CD gives to a script of the ConfigMap argocd-cm.

local status = obj.status or {}

local function condition(type_)
  for _, each in ipairs(status.conditions or {}) do
    if each.type == type_ then
      return each
    end
  end
  return {}
end

local function health(state, message)
  return { status = state, message = message or "" }
end

if (status.observedGeneration or -1) < 0 then
  return health("Progressing", "No status yet; if this stays so, look at the operator's pod.")
end

local succeeded = condition("Succeeded")

-- A run that ended stays what it became, even before the operator has looked at a later change of spec.suspend.
if succeeded.status == "True" then
  return health("Healthy", succeeded.message)
end
if succeeded.status == "False" then
  local message = (succeeded.reason or "Failed") .. ": " .. (succeeded.message or "")
  local hint = (status.failure or {}).hint
  if hint ~= nil and hint ~= "" then
    message = message .. "\nWhat to do: " .. hint
  end
  return health("Degraded", message)
end

if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "The operator has not seen the newest spec yet.")
end

local suspended = condition("Suspended")
if suspended.status == "True" then
  return health("Suspended", suspended.message)
end

if suspended.reason == "Suspending" then
  return health("Progressing", "Suspending: " .. suspended.message)
end

local message = status.phase or "Pending"
local progress = status.progress or {}
if message == "Training" and progress.step ~= nil and progress.totalSteps ~= nil then
  message = message .. ", step " .. progress.step .. " of " .. progress.totalSteps
end
local reconciling = condition("Reconciling")
if reconciling.message ~= nil and reconciling.message ~= "" then
  message = message .. ": " .. reconciling.message
end
return health("Progressing", message)
