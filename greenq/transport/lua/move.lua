-- Moves reserved messages from the unacked records elsewhere: back to a queue (requeue, restore, retry), to
-- a dead-letter list (bury), or to the parked ETAs (park). A message whose record is gone is somebody
-- else's by now and stays where it is, so repeating a call whose answer got lost moves nothing twice.
--
-- KEYS  1 unacked, 2 unacked_index, 3… the lists and zsets to move to
-- ARGV  for each message: its tag, the number of its goal (1 is KEYS[3]),
--       'next' (RPUSH: taken next), 'last' (LPUSH: taken last) or a score (ZADD), the text to put there
-- Reply how many were moved
local moved = 0
for i = 1, #ARGV, 4 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    local goal, how, text = KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 2], ARGV[i + 3]
    if how == 'next' then
      redis.call('RPUSH', goal, text)
    elseif how == 'last' then
      redis.call('LPUSH', goal, text)
    else
      redis.call('ZADD', goal, how, text)
    end
    moved = moved + 1
  end
end
return moved
