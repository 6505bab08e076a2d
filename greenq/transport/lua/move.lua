-- Moves reserved messages from the unacked records elsewhere: back to a queue (requeue, restore, retry), to
-- a dead-letter list (bury), or to the parked ETAs (park). A message whose record is gone is somebody
-- else's by now and stays where it is, so repeating a call whose answer got lost moves nothing twice.
-- A message whose goal is a key of another type stays reserved, and the others are moved: a script that
-- fails halfway is not undone, so an error after HDEL would lose the message. For the same reason a user
-- who may delete but not push is refused before (Redis 7 and later can tell).
--
-- KEYS  1 unacked, 2 unacked_index, 3… the lists and zsets to move to
-- ARGV  for each message: its tag, the number of its goal (1 is KEYS[3]),
--       'next' (RPUSH: taken next), 'last' (LPUSH: taken last) or a score (ZADD), the text to put there
-- Reply how many were moved, or an error that names the wrong key
local moved, problem = 0, nil
local commands = {next = 'RPUSH', last = 'LPUSH'}
for i = 1, #ARGV, 4 do
  local goal, how, text = KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 2], ARGV[i + 3]
  local kind = redis.call('TYPE', goal).ok
  local wanted = (how == 'next' or how == 'last') and 'list' or 'zset'
  if kind ~= wanted and kind ~= 'none' then
    problem = redis.error_reply('WRONGTYPE ' .. goal .. ' is no ' .. wanted .. ' but a ' .. kind)
  elseif redis.acl_check_cmd and not (
    redis.acl_check_cmd('ZREM', KEYS[2], '')
    and redis.acl_check_cmd(commands[how] or 'ZADD', goal, commands[how] and '' or '0', '')
  ) then
    problem = redis.error_reply('NOPERM a move needs RPUSH, LPUSH, ZADD and ZREM')
  elseif redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    if commands[how] then
      redis.call(commands[how], goal, text)
    else
      redis.call('ZADD', goal, how, text)
    end
    moved = moved + 1
  end
end
return problem or moved
