-- Cancels, pauses or resumes a workflow. Each worker that keeps the index reads the list of stopped workflows twice a
-- second.
--
-- KEYS  1 the workflow, 2 the stopped workflows: a hash
-- ARGV  1 its id, 2 'cancelled', 'paused', or '' for neither, 3 how many seconds the list is kept, 4 the maximum
--       number of workflows on it, 5 how many seconds a paused workflow is kept
-- Reply the previous value, '' for neither; or an error:
--       UNKNOWN the index has no such workflow
--       FULL    too many workflows are stopped
if redis.call('HEXISTS', KEYS[1], 'since') == 0 then
  return redis.error_reply('UNKNOWN the index has no such workflow')
end
local before, now = redis.call('HGET', KEYS[1], 'stop') or '', redis.call('TIME')[1]
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'stop')
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  local most = tonumber(ARGV[4])
  if redis.call('HLEN', KEYS[2]) > most then
    -- Remove expired entries. They cannot be found by position.
    local all = redis.call('HGETALL', KEYS[2])
    for i = 1, #all, 2 do
      local since = string.match(all[i + 1], ' (%d+)$')
      if all[i] ~= '' and since and tonumber(now) - tonumber(since) > tonumber(ARGV[3]) then
        redis.call('HDEL', KEYS[2], all[i])
      end
    end
    if redis.call('HLEN', KEYS[2]) > most then return redis.error_reply('FULL too many workflows are stopped') end
  end
  redis.call('HSET', KEYS[1], 'stop', ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. now)
  if ARGV[2] == 'paused' then
    for _, ending in ipairs({'', '.nodes', '.failed', '.held', '.calls'}) do
      redis.call('EXPIRE', KEYS[1] .. ending, ARGV[5])
    end
  end
end
redis.call('HINCRBY', KEYS[2], '', 1)
redis.call('EXPIRE', KEYS[2], ARGV[3])
return before
