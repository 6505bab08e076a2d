-- Removes the states of tasks that have failed, before a retry sends them again.
--
-- KEYS  the states
-- Reply how many were removed; a success stays: the task was running when its failure was read, and is not sent again
--
-- As in settle.lua, a success cannot be recognised in a compressed result or one in YAML.
local removed = 0
for _, name in ipairs(KEYS) do
  local text = redis.call('TYPE', name).ok == 'string' and redis.call('GETRANGE', name, 0, 63) or ''
  if string.match(text, 'status%W+(%u+)') ~= 'SUCCESS' then removed = removed + redis.call('DEL', name) end
end
return removed
