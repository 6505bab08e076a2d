-- Pushes a message once more whose first push may have arrived, unless there is a trace of it.
--
-- KEYS  1 its list, 2 its queue's inbox, 3 unacked, 4 its queue's parked ETAs, 5 its result, if only this
--       sending can have led to one
-- ARGV  1 the message, 2 what follows it in its record when it is reserved, 3 its member when it is parked
-- Reply 1 if it was pushed, 0 if it is there already
local message = ARGV[1]
for i = 1, 2 do
  if redis.call('LPOS', KEYS[i], message, 'MAXLEN', 1000) then return 0 end
end
if redis.call('ZSCORE', KEYS[4], ARGV[3]) then return 0 end
if KEYS[5] and redis.call('EXISTS', KEYS[5]) == 1 then return 0 end
-- Reserved by a worker, under a tag of its own. Looked for where that takes a millisecond at most.
local record = '[' .. message .. ARGV[2]
if redis.call('HLEN', KEYS[3]) <= 1000 then
  for _, tag in ipairs(redis.call('HKEYS', KEYS[3])) do
    if redis.call('HSTRLEN', KEYS[3], tag) == #record and redis.call('HGET', KEYS[3], tag) == record then
      return 0
    end
  end
end
redis.call('LPUSH', KEYS[1], message)
return 1
