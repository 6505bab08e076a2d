-- Moves messages from their queues into the unacked records of one worker, all or nothing.
--
-- KEYS  1 unacked, 2 unacked_index, 3 the owner: a hash, 4 the leases,
--       5… source lists: groups of Q lists each, the most urgent group first; a queue that has several turns
--       appears as many times
-- ARGV  1 the owner's prefix of tags, 2 the number of the first tag, 3 the number of this call, 4 the maximum number of
--       messages, 5 the bytes after which to take no more, 6 Q (the number of turns, the size of a group), 7 the first
--       turn of a group, or, if negative, each list is emptied before the next one, 8 the owner's member of the leases,
--       9… for each queue, in the order of a group, the text that ends its record: , "", "<queue>"]
-- Reply {messages left in all lists, number of the next take's first tag,
--        then for each message: the number of its tag, its queue, its text …}, where queue 0 means that the text
--        is the whole record; or an error:
--        FORGOTTEN the server does not know the owner: it has lost its data
--        CLOSED    the owner has left
--        LAPSED    the owner's lease has ended; no worker would recover what it took now
--
-- Each call has a number. If it does not exceed the number of the last call, this call was delayed and its
-- repetition has overtaken it, so this call takes nothing. If tags from the first one on are in use, then an earlier
-- call was carried out and its reply was lost: the messages it reserved are returned, so a repeated take neither loses
-- nor hoards messages.
-- The lists of a group share fairly unless they have no turns; each is served from its tail (oldest). A key that is not
-- a list is skipped: an error here would lose messages popped before it, since a script that fails is not undone.
-- For the same reason a user who is allowed to pop but not to record is refused beforehand, if the server can tell
-- (Redis 7 and later).
-- Messages pass through as text: a record is "[" .. message .. the queue's ending. Nothing is decoded.
local prefix, first, number, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local bytes, queues, turn = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local reply = {0, first}
local owner = redis.call('HMGET', KEYS[3], 'next', 'call', 'closed')
local unused, now = tonumber(owner[1]), redis.call('TIME')

if not unused then
  return redis.error_reply('FORGOTTEN the server does not know this worker')
elseif owner[3] then
  return redis.error_reply('CLOSED this worker has left')
elseif number <= tonumber(owner[2]) then
  return {0, unused}
end
local lease = redis.call('ZSCORE', KEYS[4], ARGV[8])
if not lease or tonumber(lease) < tonumber(now[1]) + tonumber(now[2]) / 1000000 then
  return redis.error_reply('LAPSED the lease of this worker has ended')
elseif redis.acl_check_cmd and not (
  redis.acl_check_cmd('HSET', KEYS[1], '', '') and redis.acl_check_cmd('ZADD', KEYS[2], 0, '')
  and redis.acl_check_cmd('HSET', KEYS[3], '', '')
) then
  return redis.error_reply('NOPERM a take needs HSET and ZADD')
end

-- A server out of memory refuses a script whose first write may need memory. If one of these keys has
-- the wrong type, this fails before anything is popped.
redis.call('HDEL', KEYS[1], '')
redis.call('ZREM', KEYS[2], '')
if first < unused then
  redis.call('HSET', KEYS[3], 'call', number)
  reply[2] = unused
  for i = first, unused - 1 do
    local record = redis.call('HGET', KEYS[1], prefix .. i)
    if record then
      reply[#reply + 1] = i
      reply[#reply + 1] = 0
      reply[#reply + 1] = record
    end
  end
  return reply
end

-- Pop one message first, then two, then four, and so on up to a limit, but one at a time after the first large one. So
-- a take of large messages exceeds `bytes` by one message at most.
local _SOME, _LARGE = 32, 16384
local records, tags, left, problem, some, grows = {}, {}, most, nil, 1, true

local function pop(q, key, wanted)
  local messages = redis.pcall('RPOP', key, wanted) or {}
  if messages.err then
    problem = messages
    return 0
  end
  local count = #tags
  for n, message in ipairs(messages) do
    local i = first + count + n - 1
    -- The tag is made only once, because Lua is slow at formatting numbers.
    local tag = prefix .. i
    bytes = bytes - #message
    if #message > _LARGE then some, grows = 1, false end
    local at = count + n
    tags[at] = tag
    records[2 * at - 1] = tag
    records[2 * at] = '[' .. message .. ARGV[8 + q]
    reply[3 * at] = i
    reply[3 * at + 1] = q
    reply[3 * at + 2] = message
  end
  left = left - #messages
  if grows then some = math.min(2 * some, _SOME) end
  return #messages
end

for group = 0, queues > 0 and (#KEYS - 4) / queues - 1 or -1 do
  local open = {}
  for i = 0, queues - 1 do open[#open + 1] = (math.max(turn, 0) + i) % queues + 1 end
  while left > 0 and bytes > 0 and #open > 0 do
    local share, still = turn < 0 and left or math.max(1, math.floor(left / #open)), {}
    for _, q in ipairs(open) do
      local key, wanted, last = KEYS[4 + group * queues + q], math.min(share, left), nil
      while wanted > 0 and bytes > 0 do
        local asked = math.min(wanted, some)
        last = pop(q, key, asked) == asked
        if not last then break end
        wanted = wanted - asked
      end
      if last then still[#still + 1] = q end
    end
    open = still
  end
end

redis.call('HSET', KEYS[3], 'call', number, 'next', first + #tags)
reply[2] = first + #tags
if #tags > 0 then
  local score, scores = now[1] .. '.' .. string.format('%06d', tonumber(now[2])), {}
  for i, tag in ipairs(tags) do
    scores[2 * i - 1] = score
    scores[2 * i] = tag
  end
  -- Write the records in portions, because Lua passes at most a few thousand values to one call.
  for i = 1, #records, 1000 do
    local last = math.min(i + 999, #records)
    redis.call('HSET', KEYS[1], unpack(records, i, last))
    redis.call('ZADD', KEYS[2], unpack(scores, i, last))
  end
elseif problem then
  return problem
end

-- Messages can be left only if this take has reached one of its limits.
if left <= 0 or bytes <= 0 then
  local seen = {}
  for i = 5, #KEYS do
    local length = not seen[KEYS[i]] and redis.pcall('LLEN', KEYS[i])
    if type(length) == 'number' then reply[1] = reply[1] + length end
    seen[KEYS[i]] = true
  end
end
return reply
