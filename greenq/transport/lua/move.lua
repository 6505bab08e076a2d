-- Moves reserved messages from the unacked records to lists: back to a queue (requeue, restore, retry)
-- or to a dead-letter list (bury). A message whose record is gone is somebody else's by now and stays
-- where it is, so repeating a call whose answer got lost pushes nothing twice. A message whose goal is no
-- list stays reserved, since a script that fails halfway is not undone; the others are moved.
--
-- KEYS  1 unacked, 2 unacked_index, 3… the lists
-- ARGV  for each message: its tag, the number of its list (1 is KEYS[3]),
--       'next' (RPUSH: taken next) or 'last' (LPUSH: taken last), the text to push
-- Reply how many were moved, or the error of a list that is none
local moved = 0
local problem
for i = 1, #ARGV, 4 do
  local list = KEYS[2 + tonumber(ARGV[i + 1])]
  local length = redis.pcall('LLEN', list)
  if type(length) == 'table' then
    problem = length
  elseif redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call(ARGV[i + 2] == 'next' and 'RPUSH' or 'LPUSH', list, ARGV[i + 3])
    moved = moved + 1
  end
end
return problem or moved
