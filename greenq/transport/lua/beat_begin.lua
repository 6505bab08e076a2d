-- Starts, as of now, the schedules of entries without a state, or of an entry that is resumed.
--
-- KEYS  1 the states: a hash, 2 the number of changes; when resuming also: 3 the paused entries: a hash
-- ARGV  1 the number of changes that the caller has seen, '' when resuming; then names and states, alternating: each
--       state is the one that the caller remembers, or '' for none
-- Reply the states, in the order of the names; {} if entries were changed after the caller counted the changes,
--       or if the entry to be resumed was not paused
--
-- An entry that was removed after the caller read the entries must not get a state, or it would be sent again.
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
if #KEYS > 2 then
  if redis.call('HDEL', KEYS[3], ARGV[2]) == 0 then return {} end
  local rest = string.match(redis.call('HGET', KEYS[1], ARGV[2]) or '', '^%d+( .*)$')
  redis.call('HSET', KEYS[1], ARGV[2], now .. (rest or ' 0 - 0'))
  redis.call('INCR', KEYS[2])
elseif (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then
  return {}
else
  for i = 2, #ARGV, 2 do
    redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1] ~= '' and ARGV[i + 1] or now .. ' 0 - 0')
  end
end
local states = {}
for i = 2, #ARGV, 2 do states[#states + 1] = redis.call('HGET', KEYS[1], ARGV[i]) end
return states
