-- Records the load of one process of a supervisord group, and makes it the leader of the group if there is none.
--
-- KEYS  1 the leader: a string with an expiry, 2 the reports: a hash, process -> unix seconds, a space, JSON,
--       3 the processes that must drain: a set
-- ARGV  1 the process, 2 its report as JSON, empty when it leaves, 3 milliseconds within which the leader must call
--       again, 4 how many milliseconds reports are kept
-- Reply {1 if the process leads, the processes that must drain, the processes with recent reports, each followed by
--       its report}; the last two lists are empty unless the process leads, except that a process that must drain
--       always finds its own name in the first of them
--
-- A process that must drain does not lead, so that the leader never stops itself. A repeated or late call changes
-- only the time of the report.
local process = ARGV[1]
local drains = redis.call('SISMEMBER', KEYS[3], process) == 1
local leader = redis.call('GET', KEYS[1])
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[2], process)
  redis.call('SREM', KEYS[3], process)
  if leader == process then redis.call('DEL', KEYS[1]) end
  return {0, {}, {}}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('HSET', KEYS[2], process, string.format('%.3f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
if drains then
  if leader == process then redis.call('DEL', KEYS[1]) end
  return {0, {process}, {}}
end
if leader and leader ~= process then return {0, {}, {}} end
redis.call('SET', KEYS[1], process, 'PX', ARGV[3])
redis.call('EXPIRE', KEYS[3], 86400)
local recent = {}
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local at = tonumber(string.match(all[i + 1], '^%S+') or '')
  if at and now - at <= tonumber(ARGV[4]) / 1000 then
    recent[#recent + 1] = all[i]
    recent[#recent + 1] = string.match(all[i + 1], '^%S+ (.*)$') or ''
  else
    redis.call('HDEL', KEYS[2], all[i])
  end
end
return {1, redis.call('SMEMBERS', KEYS[3]), recent}
