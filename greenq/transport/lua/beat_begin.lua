-- Makes entries count from now on: those without a state, or an entry that is resumed.
--
-- KEYS  1 the states: a hash; when resuming also: 2 the paused entries: a hash, 3 the number of changes
-- ARGV  names and states, alternating: the state that the caller remembers, or '' for none
-- Reply the states, in the order of the names; when resuming, {} if the entry was not paused
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
if #KEYS > 1 then
  if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then return {} end
  local rest = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+( .*)$')
  redis.call('HSET', KEYS[1], ARGV[1], now .. (rest or ' 0 - 0'))
  redis.call('INCR', KEYS[3])
else
  for i = 1, #ARGV, 2 do
    redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1] ~= '' and ARGV[i + 1] or now .. ' 0 - 0')
  end
end
local states = {}
for i = 1, #ARGV, 2 do states[#states + 1] = redis.call('HGET', KEYS[1], ARGV[i]) end
return states
