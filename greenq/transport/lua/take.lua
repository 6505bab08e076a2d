-- Moves messages from their queues into the unacked records of one worker, all or nothing.
--
-- KEYS  1 unacked, 2 unacked_index, 3 the owner's counter: the number of its first unused tag,
--       4 the leases, 5… source lists: groups of Q lists each, most urgent group first
-- ARGV  1 the owner's tag prefix, 2 sequence number of the first tag, 3 most messages to take,
--       4 Q (the number of queues, the size of a group), 5 which queue of a group is served first,
--       6 the owner's member of the leases, 7 seconds that a lease holds,
--       8… for each queue, in the order of a group, the text that ends its record: , "", "<queue>"], and behind
--       them those of queues that are not taken from any more, for what is held already
-- Reply {messages left in all lists, number of the next take's first tag, queue of message 1, message 1,
--       queue of message 2, message 2, …}
--
-- Message i gets the tag <prefix><first + i - 1>. If the first of these tags is held already, then this
-- call was carried out before and its answer got lost: the held messages are returned again, so a retried
-- take neither loses nor hoards. If it was used and is held no more, then this is an old call that was long
-- under way, behind the one that repeated it: it takes nothing, for its tags may be in use by now.
-- An owner that has no lease yet gets one with its first messages: without, nobody would notice its death.
-- Lists of one group share fairly; each is served from its tail (oldest). A key that is no list is passed
-- over: an error here would lose what was popped before it, since a script that fails is not undone.
-- For the same reason a user who may pop but not record is refused before (Redis 7 and later can tell).
-- Messages pass as text: a record is "[" .. message .. the queue's ending. Nothing is decoded.
local prefix, first, most, queues, turn = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local reply = {0, first}
local unused = tonumber(redis.call('GET', KEYS[3]) or first)

if redis.call('HEXISTS', KEYS[1], prefix .. first) == 1 then
  for i = 0, most - 1 do
    local record = redis.call('HGET', KEYS[1], prefix .. (first + i))
    if not record then break end
    reply[2] = first + i + 1
    for q = 1, #ARGV - 7 do
      local ending = ARGV[7 + q]
      if string.sub(record, -#ending) == ending then
        reply[#reply + 1] = q
        reply[#reply + 1] = string.sub(record, 2, -#ending - 1)
        break
      end
    end
  end
elseif first < unused then
  reply[2] = unused
elseif redis.acl_check_cmd and not (
  redis.acl_check_cmd('HSET', KEYS[1], '', '') and redis.acl_check_cmd('ZADD', KEYS[2], 0, '')
  and redis.acl_check_cmd('SET', KEYS[3], '', 'EX', 1) and redis.acl_check_cmd('ZADD', KEYS[4], 'NX', 0, '')
) then
  return redis.error_reply('NOPERM a take needs HSET, ZADD and SET')
else
  local records, tags, left, problem = {}, {}, most, nil
  for group = 0, queues > 0 and (#KEYS - 4) / queues - 1 or -1 do
    local open = {}
    for i = 0, queues - 1 do open[#open + 1] = (turn + i) % queues + 1 end
    while left > 0 and #open > 0 do
      local share, still = math.max(1, math.floor(left / #open)), {}
      for _, q in ipairs(open) do
        local wanted = math.min(share, left)
        if wanted > 0 then
          local messages = redis.pcall('RPOP', KEYS[4 + group * queues + q], wanted) or {}
          if messages.err then problem, messages = messages, {} end
          for _, message in ipairs(messages) do
            local tag = prefix .. (first + most - left)
            left = left - 1
            records[#records + 1] = tag
            records[#records + 1] = '[' .. message .. ARGV[7 + q]
            tags[#tags + 1] = tag
            reply[#reply + 1] = q
            reply[#reply + 1] = message
          end
          if #messages == wanted then still[#still + 1] = q end
        end
      end
      open = still
    end
  end
  if #tags > 0 then
    local now, scores = redis.call('TIME'), {}
    local score = now[1] .. '.' .. string.format('%06d', tonumber(now[2]))
    for i, tag in ipairs(tags) do
      scores[2 * i - 1] = score
      scores[2 * i] = tag
    end
    -- In portions: Lua hands at most some thousand values to one call.
    for i = 1, #records, 1000 do
      local last = math.min(i + 999, #records)
      redis.call('HSET', KEYS[1], unpack(records, i, last))
      redis.call('ZADD', KEYS[2], unpack(scores, i, last))
    end
    reply[2] = first + #tags
    -- A day is longer than any call can be under way.
    redis.call('SET', KEYS[3], reply[2], 'EX', 86400)
    redis.call('ZADD', KEYS[4], 'NX', string.format('%.6f', tonumber(score) + tonumber(ARGV[7])), ARGV[6])
  elseif problem then
    return problem
  end
  if left > 0 then return reply end
end

-- Only a take that got all it asked for can have left something.
for i = 5, #KEYS do
  local length = redis.pcall('LLEN', KEYS[i])
  if type(length) == 'number' then reply[1] = reply[1] + length end
end
return reply
