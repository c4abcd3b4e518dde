-- Announces roles of a process and forgets those that are long gone. KEYS 1 roster: a hash of
-- "<milliseconds when last seen> <JSON>" by role and process. ARGV 1 milliseconds of silence after which a process counts
-- as lost, 2 after which it is forgotten, 3 how many lost ones are kept, then field and JSON of each role.
local roster = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 4, #ARGV, 2 do
  redis.call('HSET', roster, ARGV[i], string.format('%.0f', now) .. ' ' .. ARGV[i + 1])
end
redis.call('PEXPIRE', roster, ARGV[2])

local lost = {}
local all = redis.call('HGETALL', roster)
for i = 1, #all, 2 do
  local silent = now - (tonumber(string.match(all[i + 1], '^%d+')) or 0)
  if silent > tonumber(ARGV[1]) then lost[#lost + 1] = { silent, all[i] } end
end
-- Newest first. Processes that crash at once and get another name each time must not fill it.
table.sort(lost, function(a, b) return a[1] < b[1] end)
for place, each in ipairs(lost) do
  if place > tonumber(ARGV[3]) or each[1] > tonumber(ARGV[2]) then redis.call('HDEL', roster, each[2]) end
end
return #all / 2
