-- Renews a worker's lease and publishes its heartbeat if one is due. Returns information about this worker, other
-- workers and work: which leases have ended by the server's clock, whether there are messages, and when the next parked
-- ETA is due. For a worker with a beat, it also does what beat_lead.lua does for a separate beat.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds);
--       2 the owner: a hash; 3 the paused queues: a hash, whose fields are their names;
--       4 the worker that relays messages from the lists below: a text with an expiry;
--       5… the parked ETAs: zsets, score when a message is due (unix seconds); then the lists and inboxes;
--       with a beat: finally the leader, a string with an expiry, and the number of changes
-- ARGV  1 this worker's member, 2 how many seconds the lease lasts from now on, 3 the number of zsets of parked ETAs,
--       4 '1' if this worker can relay, '0' to give up the role;
--       5 the queues that this worker takes from, as JSON, '' if the server already has them;
--       6 a channel and 7 the text to publish on it, '' for none;
--       with a beat: 8 its name, 9 milliseconds within which the leader must call again
-- Reply {1 if the lease was still held; 0 if it had ended in the meantime, or if there was none,
--        the server's time, the number of lists that have messages,
--        the time at which the next parked ETA is due or an empty text,
--        {paused queues}, the reason for a failed publication or an empty text,
--        the number of the owner's first unused tag, 0 if the server does not know the owner,
--        in that case the challenge (`question`) that the owner must return when it registers, else an empty text,
--        1 if this worker relays,
--        {1 if the beat leads, the number of changes, the leader}, or {} if there is no beat or the server refused,
--        expired members, at most a hundred …}
--
-- The challenge distinguishes registrations before a loss of data from later ones. A registration that was in transit
-- when the server lost its data does not know the messages taken in the meantime, and must not be accepted.
-- An owner that has left does not get a lease again, because a call delayed for a long time must not revive it.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.6f', now), 'LIMIT', 0, 100)
-- A key of the wrong type, or one that this user is not allowed to read, must not cost the worker its lease.
local paused = redis.pcall('HKEYS', KEYS[3])
local owner = redis.call('HMGET', KEYS[2], 'next', 'closed', 'asks')
local held = 0
if not owner[2] then
  -- Call ZREM first, since a server out of memory refuses a script whose first write may need memory.
  held = redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[2])), ARGV[1])
end
if ARGV[5] ~= '' and not owner[2] then redis.call('HSET', KEYS[2], 'queues', ARGV[5]) end
if not owner[1] and not owner[3] then
  owner[3] = string.format('%.6f', now)
  redis.call('HSET', KEYS[2], 'asks', owner[3])
  redis.call('EXPIRE', KEYS[2], 3600)
end
local due
local lists = 5 + tonumber(ARGV[3])
local last = ARGV[8] and #KEYS - 2 or #KEYS
for i = 5, lists - 1 do
  local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if first[2] and (not due or tonumber(first[2]) < due) then due = tonumber(first[2]) end
end
-- A refused publication must not cost the worker its lease either.
local told = ARGV[6] ~= '' and redis.pcall('PUBLISH', ARGV[6], ARGV[7])
local relay = redis.pcall('GET', KEYS[4])
local relays = 0
if relay == ARGV[1] and ARGV[4] == '0' then
  redis.call('DEL', KEYS[4])
elseif ARGV[4] == '1' and (not relay or relay == ARGV[1]) then
  redis.pcall('SET', KEYS[4], ARGV[1], 'PX', math.floor(tonumber(ARGV[2]) * 1000))
  relays = 1
end
-- Nor must an error with the keys of the beat cost the worker its lease.
local lead = {}
if ARGV[8] then
  local leader, changes = redis.pcall('GET', KEYS[last + 1]), redis.pcall('GET', KEYS[last + 2]) or '0'
  if not leader or leader == ARGV[8] then
    leader = redis.pcall('SET', KEYS[last + 1], ARGV[8], 'PX', ARGV[9])
    if not leader.err then leader = ARGV[8] end
  end
  if type(leader) == 'string' and type(changes) == 'string' then
    lead = {leader == ARGV[8] and 1 or 0, changes, leader}
  end
end
local reply = {
  held,
  string.format('%.6f', now),
  lists <= last and redis.call('EXISTS', unpack(KEYS, lists, last)) or 0,
  due and string.format('%.6f', due) or '',
  paused.err and {} or paused,
  type(told) == 'table' and told.err or '',
  tonumber(owner[1] or 0),
  owner[1] and '' or owner[3],
  relays,
  lead,
}
for _, member in ipairs(expired) do
  if member == ARGV[1] then reply[1] = 0 else reply[#reply + 1] = member end
end
return reply
