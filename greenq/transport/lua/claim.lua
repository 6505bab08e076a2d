-- Claims, or claims again, the recovery of an owner whose lease has ended. The claim lasts for a limited time.
--
-- KEYS  1 the leases, 2 the ended owner: a hash
-- ARGV  1 the ended owner's member of the leases, 2 the claimant, 3 how many seconds the claim lasts
-- Reply {when its lease ended: the exact score, the tag of the message that ran alone there or ''};
--       {} if there is nothing to recover because the lease has been removed or renewed;
--       {'', claimant} if another worker is recovering the owner
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return {} end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
if tonumber(score) >= now then return {} end
local owner = redis.call('HMGET', KEYS[2], 'claimant', 'claimed_until', 'alone')
if owner[1] and owner[1] ~= ARGV[2] and tonumber(owner[2]) > now then return {'', owner[1]} end
-- Call HDEL first, since a server out of memory refuses a script whose first write may need memory.
redis.call('HDEL', KEYS[2], 'claimant')
redis.call('HSET', KEYS[2], 'claimant', ARGV[2], 'claimed_until', string.format('%.6f', now + tonumber(ARGV[3])))
return {score, owner[3] or ''}
