-- Pushes messages again if their first push left no trace. They were pushed in one command, so a trace of one of them
-- shows that all of them arrived.
--
-- KEYS  1 their list, 2 their queue's first list, where a relay may have moved them, 3 its inbox, 4 unacked,
--       5 its parked ETAs, 6…: their results, if only this push can have led to them
-- ARGV  1 the text that follows a message in its record when it is reserved, 2 the text that precedes it
--       when it is parked, 3 the number of other texts that the newest message may have become by being requeued;
--       these texts; then the messages, at most a thousand or so, beginning with the one to be taken first
-- Reply 1 if they were pushed, 0 if they are already there
local others = tonumber(ARGV[3])
local from = 4 + others

-- The newest message leaves the list last. A requeued message is at one end of its list or the other.
local function is_in(list, text)
  return redis.call('LPOS', list, text, 'MAXLEN', 1000) or redis.call('LPOS', list, text, 'RANK', -1, 'MAXLEN', 1000)
end

local function is_queued(text)
  return is_in(KEYS[1], text) or KEYS[2] ~= KEYS[1] and is_in(KEYS[2], text)
end

if is_queued(ARGV[#ARGV]) then return 0 end
for i = 4, from - 1 do
  if is_queued(ARGV[i]) then return 0 end
end
if #KEYS > 5 and redis.call('EXISTS', unpack(KEYS, 6)) > 0 then return 0 end
for i = 4, #ARGV do
  if redis.call('LPOS', KEYS[3], ARGV[i], 'MAXLEN', 1000) then return 0 end
  if redis.call('ZSCORE', KEYS[5], ARGV[2] .. ARGV[i]) then return 0 end
end
-- A worker may have reserved a message, under a tag of its own. Search only if that takes a few milliseconds at most.
if redis.call('HLEN', KEYS[4]) <= 1000 then
  local records, lengths = {}, {}
  for i = 4, #ARGV do
    local record = '[' .. ARGV[i] .. ARGV[1]
    records[record], lengths[#record] = true, true
  end
  for _, tag in ipairs(redis.call('HKEYS', KEYS[4])) do
    if lengths[redis.call('HSTRLEN', KEYS[4], tag)] and records[redis.call('HGET', KEYS[4], tag)] then
      return 0
    end
  end
end
redis.call('LPUSH', KEYS[1], unpack(ARGV, from))
return 1
