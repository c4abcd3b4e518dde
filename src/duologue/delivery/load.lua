-- Writes how one consumer stands, and forgets those that have been silent. KEYS 1 load: a hash of
-- "<milliseconds when written> <JSON>" by consumer. ARGV 1 consumer, 2 JSON, 3 milliseconds of silence after which a
-- consumer is forgotten.
local load = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', load, ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', load, ARGV[3])
local all = redis.call('HGETALL', load)
for i = 1, #all, 2 do
  if now - (tonumber(string.match(all[i + 1], '^%d+')) or 0) > tonumber(ARGV[3]) then redis.call('HDEL', load, all[i]) end
end
return #all / 2
