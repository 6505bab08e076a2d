-- Prepares a chord for a retry: removes the parts that failed, so that they can be counted again.
--
-- KEYS  1 the key of its group
-- ARGV  1 its size, 2 'z' (its parts are ordered: a zset) or 'l' (a list), 3 how many seconds it is kept, 0 for no
--       limit, 4 the number of parts to remove, 5 a claim that was left behind, '' for none;
--       their members and places; then the parts that stay, if the chord has ended: member, place and value of each
-- Reply '' if the chord is prepared. Otherwise nothing was done, and the reply is the claim by a part that is
--       completing it now, or 'done' if it has ended and these are not all of its parts, because another part has
--       ended since the caller read their states
--
-- If the results have their own server and the reply about the ending of the last part was lost, the claim remains.
local name, ordered, first = KEYS[1], ARGV[2] == 'z', 6 + 2 * tonumber(ARGV[4])
local claim = redis.call('GET', name .. '.c')
if claim and claim == ARGV[5] then claim = 'done' end
if claim and claim ~= 'done' then return claim end
if claim == 'done' and tonumber(ARGV[4]) + (#ARGV - first + 1) / 3 < tonumber(ARGV[1]) then return claim end
if claim == 'done' or redis.call('EXISTS', name .. '.s') == 0 then
  redis.call('DEL', name .. '.j', name .. '.d', name .. '.t', name .. '.c', name .. '.a')
  for i = first, #ARGV, 3 do
    redis.call('SADD', name .. '.d', ARGV[i])
    if ordered then
      redis.call('ZADD', name .. '.j', ARGV[i + 1], ARGV[i + 2])
    else
      redis.call('RPUSH', name .. '.j', ARGV[i + 2])
    end
  end
  redis.call('SET', name .. '.s', ARGV[1])
else
  for i = 6, first - 1, 2 do
    redis.call('SREM', name .. '.d', ARGV[i])
    if ordered then
      redis.call('ZREMRANGEBYSCORE', name .. '.j', ARGV[i + 1], ARGV[i + 1])
    else
      local id = string.match(ARGV[i], '^(.*):[^:]*$')
      for _, value in ipairs(redis.call('LRANGE', name .. '.j', 0, -1)) do
        if string.find(value, id, 1, true) then redis.call('LREM', name .. '.j', 1, value) end
      end
    end
  end
end
if ARGV[3] ~= '0' then
  for _, ending in ipairs({'.j', '.d', '.s', '.t'}) do redis.call('EXPIRE', name .. ending, ARGV[3]) end
end
return ''
