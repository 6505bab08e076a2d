-- Moves reserved messages from the unacked records to lists: back to a queue (requeue, restore, retry)
-- or to a dead-letter list (bury). A message whose record is gone is somebody else's by now and stays
-- where it is, so repeating a call whose answer got lost pushes nothing twice.
--
-- KEYS  1 unacked, 2 unacked_index, 3… the lists
-- ARGV  for each message: its tag, the number of its list (1 is KEYS[3]),
--       'next' (RPUSH: taken next) or 'last' (LPUSH: taken last), the text to push
-- Reply how many were moved
local moved = 0
for i = 1, #ARGV, 4 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    local push = ARGV[i + 2] == 'next' and 'RPUSH' or 'LPUSH'
    redis.call(push, KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 3])
    moved = moved + 1
  end
end
return moved
