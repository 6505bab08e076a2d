-- Ends reserved messages: stores and announces results, moves messages elsewhere, acknowledges the rest.
--
-- KEYS  the results, each also its channel; then, if there are moves or acknowledgements, unacked,
--       unacked_index, and the lists and zsets to move to, the goals
-- ARGV  1 R, the number of results, 2 M, the number of moves, 3 P, the number of publications, 4 the longest
--         that a dead-letter list gets;
--       for each result: seconds until it expires, 0 for never, behind a ! if it must not replace a success,
--         and the state, encoded;
--       for each move: the message's tag, the number of its goal, what to do there: 'next' (RPUSH: taken next),
--         'last' (LPUSH: taken last), 'dead' (LPUSH, and the list is cut) or a score (ZADD), and the text;
--       for each publication: channel and text; then the tags to acknowledge
-- Reply {how many were moved, why something could not be published or ''}, or an error that names the wrong key
--
-- A script that fails halfway is not undone. So results come first: a server without memory refuses the
-- first write of a script, and what has no result stored is not acknowledged. A call may be repeated when its
-- answer got lost: a message whose record is gone is somebody else's by now and is not moved; one without a
-- tag has no record and is just put there. A message whose goal is a key of another type stays reserved, and
-- the others are moved. A user who may delete but not push is refused before (Redis 7 and later can tell).
local results, moves, news, at = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), 5
local refused = ''

-- Without a say in anything else: a user without channels still ends its messages.
local function publish(channel, text)
  local answer = redis.pcall('PUBLISH', channel, text)
  if type(answer) == 'table' and answer.err then refused = answer.err end
end

for i = 1, results do
  local key, seconds, payload = KEYS[i], ARGV[at], ARGV[at + 1]
  local stored = true
  if string.byte(seconds) == 33 then
    seconds = string.sub(seconds, 2)
    -- The status is looked for where all but one serializer write it: first. Of a compressed result and one
    -- in YAML it cannot be told, and they are overwritten, as is a key of another type.
    stored = redis.call('TYPE', key).ok ~= 'string'
      or string.match(redis.call('GETRANGE', key, 0, 63), 'status%W+(%w+)') ~= 'SUCCESS'
  end
  if stored then
    if seconds == '0' then
      redis.call('SET', key, payload)
    else
      redis.call('SETEX', key, seconds, payload)
    end
    publish(key, payload)
  end
  at = at + 2
end

local unacked, index = KEYS[results + 1], KEYS[results + 2]
local moved, problem = 0, nil
local commands = {next = 'RPUSH', last = 'LPUSH', dead = 'LPUSH'}
for _ = 1, moves do
  local tag, goal, how, text = ARGV[at], KEYS[results + 2 + tonumber(ARGV[at + 1])], ARGV[at + 2], ARGV[at + 3]
  local push = commands[how]
  local kind, wanted = redis.call('TYPE', goal).ok, push and 'list' or 'zset'
  if kind ~= wanted and kind ~= 'none' then
    problem = redis.error_reply('WRONGTYPE ' .. goal .. ' is no ' .. wanted .. ' but a ' .. kind)
  elseif redis.acl_check_cmd and not (
    redis.acl_check_cmd('ZREM', index, '') and redis.acl_check_cmd(push or 'ZADD', goal, push and '' or '0', '')
  ) then
    problem = redis.error_reply('NOPERM a move needs RPUSH, LPUSH, ZADD and ZREM')
  elseif tag == '' or redis.call('HDEL', unacked, tag) == 1 then
    if tag ~= '' then redis.call('ZREM', index, tag) end
    if push then
      redis.call(push, goal, text)
    else
      redis.call('ZADD', goal, how, text)
    end
    if how == 'dead' then redis.call('LTRIM', goal, 0, tonumber(ARGV[4]) - 1) end
    moved = moved + 1
  end
  at = at + 4
end

local told = at
at = at + 2 * news

-- In portions: Lua hands at most some thousand values to one call.
for first = at, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  redis.call('ZREM', index, unpack(ARGV, first, last))
  redis.call('HDEL', unacked, unpack(ARGV, first, last))
end

-- Last: who hears of an outcome finds it done.
for i = told, told + 2 * news - 2, 2 do
  publish(ARGV[i], ARGV[i + 1])
end
return problem or {moved, refused}
