-- What may be done to a TrainingRun: its spec is immutable but for `suspend`, and a failed run is tried again as another one.

local ended, failed = false, false
for _, each in ipairs((obj.status or {}).conditions or {}) do
  if each.type == "Succeeded" and each.status ~= "Unknown" then
    ended = true
    failed = each.status == "False"
  end
end

local suspended = obj.spec.suspend == true
return {
  suspend = { iconClass = "fa fa-fw fa-pause", displayName = "Suspend", disabled = ended or suspended },
  resume = { iconClass = "fa fa-fw fa-play", displayName = "Resume", disabled = ended or not suspended },
  retry = { iconClass = "fa fa-fw fa-redo", displayName = "Retry as a new run", disabled = not failed },
}
